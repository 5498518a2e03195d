"""Plan and store → comparison: means over seeds, ratios, Pareto-optimal combinations, and what may be ranked.

Only committed artefacts count. A combination is one row whatever its seeds; values taken under different conditions
of measurement (``conditions.py``) fall into groups, and nothing is ranked across groups.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Combination, Plan
from orchestrator.reporting import conditions
from orchestrator.reporting.comparison import NOT_TAKEN, Cell, Column, Comparison, Row, StageCost, Status
from orchestrator.reporting.front import with_axes
from orchestrator.reporting.results import Results, batch_size, number, read_results, rows_by_column
from specs.metrics import METRICS, MetricRow

RATIOS = {
    "params": "params_ratio",
    "macs": "macs_ratio",
    "throughput": "throughput_ratio",
    "latency_ms": "latency_ratio",
    "peak_memory_mib": "peak_memory_ratio",
    "checkpoint_mib": "checkpoint_ratio",
}
"""Metric → the metric that holds its ratio to the baseline."""

Values = dict[str, dict[int, MetricRow]]
"""Column key → seed → row, of one combination."""


def compare(
    plan: Plan, store: ArtifactStore, *, cost: str = "macs", failures: Mapping[str, str] | None = None
) -> Comparison:
    """Put all combinations of a plan side by side.

    Args:
        plan: the experiment's plan.
        store: the store its stages were committed to.
        cost: metric (or column key) that top-1 is weighed against for the Pareto mark.
        failures: digest of a stage → why it failed, as far as the caller knows; the store keeps only what succeeded.

    Raises:
        UsageError: if `cost` is no metric of this experiment.
        StoreError: if an artefact is damaged.
    """
    failures = failures or {}
    results = read_results(plan, store)
    groups: dict[str, list[Combination]] = defaultdict(list)
    values: dict[str, Values] = {}
    for combination in plan.combinations:
        groups[combination.name].append(combination)
    for (name, seed), keyed in rows_by_column(plan, results).items():
        for key, r in keyed.items():
            values.setdefault(name, {}).setdefault(key, {})[seed] = r
    columns = _columns(values)
    letters = {column.key: {conditions.digest(c): letter for letter, c in column.groups.items()} for column in columns}

    rows = [
        _row(plan, name, group, values.get(name, {}), columns, letters, results, failures)
        for name, group in groups.items()
    ]
    rows = _mark_best(rows, columns)
    comparison = Comparison(
        experiment=plan.experiment,
        quality=None,
        cost=None,
        columns=tuple(columns),
        rows=tuple(rows),
        stages=tuple(_stage_costs(plan, results, failures)),
        stages_alone=plan.stages_alone(),
        dropped={d.name: d.reasons for d in plan.dropped},
    )
    comparison = comparison.model_copy(update={"notes": tuple(_notes(comparison))})
    return with_axes(comparison, cost)


def _columns(values: Mapping[str, Values]) -> list[Column]:
    """All columns, in the order of `METRICS`, then what strategies report of themselves by name."""
    order = {name: i for i, name in enumerate(METRICS)}
    rows: dict[str, list[MetricRow]] = defaultdict(list)
    for of_combination in values.values():
        for key, by_seed in of_combination.items():
            rows[key] += by_seed.values()
    columns = []
    for key, found in rows.items():
        first = found[0]
        distinct: dict[str, dict[str, JsonValue]] = {}
        for r in found:
            if r.value is not None:
                needed = conditions.relevant(r.name, r.conditions)
                distinct.setdefault(conditions.digest(needed), needed)
        groups = {_letter(i): needed for i, needed in enumerate(distinct.values())}
        size = batch_size(first) if key != first.name else None
        ratio = RATIOS.get(first.name, "")
        ratio = next((k for k in (f"{ratio}_b{size}", ratio) if k in rows), "")
        defined = METRICS.get(first.name)
        description = defined.description if defined else "Reported by the strategy itself."
        columns.append(
            Column(
                key=key,
                metric=first.name,
                unit=first.unit,
                direction=first.direction,
                description=description,
                batch_size=size,
                ratio=ratio or None,
                groups=groups,
                differences=conditions.differences(groups),
            )
        )
    return sorted(columns, key=lambda c: (order.get(c.metric, len(order)), c.metric, c.batch_size or 0))


def _letter(i: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _row(
    plan: Plan,
    name: str,
    group: list[Combination],
    values: Values,
    columns: list[Column],
    letters: Mapping[str, Mapping[str, str]],
    results: Results,
    failures: Mapping[str, str],
) -> Row:
    measured = tuple(c.seed for c in group if c.measured_by in results.rows)
    problems: dict[str, list[int]] = defaultdict(list)
    for c in group:
        if c.seed not in measured:
            problems[_missing(plan, c, results, failures)].append(c.seed)
    failed = any(failures.get(digest) for c in group if c.seed not in measured for digest in c.stages)
    status: Status = "measured" if not problems else "partial" if measured else "failed" if failed else "unfinished"
    detail = "; ".join(
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}: {problem}"
        for problem, seeds in problems.items()
    )
    return Row(
        name=name,
        labels=group[0].labels,
        seeds=tuple(c.seed for c in group),
        measured=measured,
        status=status,
        detail=detail,
        cells={c.key: _cell(values.get(c.key, {}), letters[c.key], detail) for c in columns},
    )


def _missing(plan: Plan, combination: Combination, results: Results, failures: Mapping[str, str]) -> str:
    """Why a combination is not measured: the first stage that failed, or else the first that is to run."""
    for digest in combination.stages:
        if failures.get(digest) and not results.done(digest):
            return f"`{plan.stages[digest].label}` failed: {failures[digest]}"
    first = next(d for d in combination.stages if not results.done(d))
    done = sum(results.done(d) for d in combination.stages)
    return f"{done} of {len(combination.stages)} stages done; next is `{plan.stages[first].label}`"


def _cell(by_seed: Mapping[int, MetricRow], letters: Mapping[str, str], detail: str) -> Cell:
    """Mean and spread over the seeds that were measured alike."""
    taken = {seed: r for seed, r in by_seed.items() if r.value is not None}
    if not taken:
        reasons = dict.fromkeys(r.reason for r in by_seed.values() if r.reason)
        return Cell(value=None, reason="; ".join(reasons) or detail or NOT_TAKEN)
    digests = {s: conditions.digest(conditions.relevant(r.name, r.conditions)) for s, r in taken.items()}
    kept = conditions.most_common(digests.values())
    by_value = {seed: float(r.value) for seed, r in taken.items() if digests[seed] == kept and r.value is not None}
    left_out = [f"seed {seed} was taken under conditions {letters[d]}" for seed, d in digests.items() if d != kept]
    left_out += [f"seed {seed}: {r.reason}" for seed, r in by_seed.items() if r.value is None and r.reason]
    return Cell(
        value=statistics.fmean(by_value.values()),
        std=statistics.stdev(by_value.values()) if len(by_value) > 1 else None,
        num_seeds=len(by_value),
        by_seed=by_value,
        group=letters[kept],
        reason="left out of the mean: " + "; ".join(left_out) if left_out else None,
    )


def _mark_best(rows: list[Row], columns: list[Column]) -> list[Row]:
    """The rows with the best cell of each column and group of conditions marked; a tie marks all of them,
    but where all are equal none is best."""
    marked = [dict(r.cells) for r in rows]
    for column in columns:
        rivals: dict[str | None, list[float]] = defaultdict(list)
        for r in rows:
            cell = r.cells[column.key]
            if cell.value is not None:
                rivals[cell.group].append(cell.value)
        if column.direction == "none":
            continue
        best = {g: (max if column.direction == "higher" else min)(v) for g, v in rivals.items() if min(v) < max(v)}
        for cells in marked:
            cell = cells[column.key]
            if cell.value is not None and best.get(cell.group) == cell.value:
                cells[column.key] = cell.model_copy(update={"best": True})
    return [r.model_copy(update={"cells": cells}) for r, cells in zip(rows, marked, strict=True)]


def _stage_costs(plan: Plan, results: Results, failures: Mapping[str, str]) -> Iterable[StageCost]:
    users: dict[str, dict[str, None]] = defaultdict(dict)
    for combination in plan.combinations:
        for digest in combination.stages:
            users[digest][combination.name] = None
    for stage in plan.walk():
        result = results.train.get(stage.digest) or results.measure.get(stage.digest) or {}
        epochs = result.get("epochs")
        yield StageCost(
            digest=stage.digest,
            label=stage.label,
            kind=stage.kind,
            status="done" if results.done(stage.digest) else "failed" if stage.digest in failures else "to run",
            combinations=tuple(users[stage.digest]),
            seconds=number(result.get("seconds")),
            images_per_s=number(result.get("images_per_s")),
            epochs=epochs if isinstance(epochs, int) else None,
        )


def _notes(comparison: Comparison) -> Iterable[str]:
    apart: dict[str, list[str]] = defaultdict(list)
    for column in comparison.columns:
        if column.differences:
            what = "; ".join(
                f"{key}: " + ", ".join(f"[{letter}] {_say(value)}" for letter, value in values.items())
                for key, values in column.differences.items()
            )
            apart[what].append(column.key)
    for what, keys in apart.items():
        yield (
            f"{', '.join(keys)}: taken under different conditions and therefore not ranked together ({what}). "
            "Measure all combinations under the same conditions to compare them."
        )
    short = [r for r in comparison.rows if r.status == "partial"]
    if short:
        yield f"{len(short)} of {len(comparison.rows)} combinations rest on fewer seeds than planned."


def _say(value: JsonValue) -> str:
    return "not stated" if value is None else str(value)
