"""Plan and store → comparison: means over seeds, ratios, Pareto-optimal combinations, and what may be ranked.

Only committed artefacts count. A combination is one row whatever its seeds; values taken under different conditions
of measurement (``conditions.py``) fall into groups, and nothing is ranked across groups.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import JsonValue

from cluster.storage import ArtifactStore
from orchestrator.errors import UsageError
from orchestrator.planning.plan import Combination, MeasureStage, Plan, TrainStage
from orchestrator.reporting import conditions
from orchestrator.reporting.comparison import Cell, Column, Comparison, Row, StageCost, Status
from orchestrator.reporting.pareto import pareto_front
from orchestrator.reporting.stored import read_result, read_rows, stage_folder
from specs.metrics import METRICS, MetricRow, row

Cost = Literal["macs", "params", "throughput", "latency_ms", "peak_memory_mib", "checkpoint_mib", "train_seconds"]
COSTS: tuple[str, ...] = get_args(Cost)

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
    results = _read(plan, store)
    groups: dict[str, list[Combination]] = defaultdict(list)
    for combination in plan.combinations:
        groups[combination.name].append(combination)

    measured = {name: {c.seed: _rows_of(plan, results, c) for c in group} for name, group in groups.items()}
    keys = _column_keys(metric for by_seed in measured.values() for rows in by_seed.values() for metric in rows or ())
    values: dict[str, Values] = {name: _by_column(by_seed, keys) for name, by_seed in measured.items()}
    columns = _columns(values)
    letters = {column.key: {conditions.digest(c): letter for letter, c in column.groups.items()} for column in columns}

    rows = [
        _row(plan, name, group, values[name], columns, letters, results, failures) for name, group in groups.items()
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


def with_axes(comparison: Comparison, cost: str, quality: str = "top1") -> Comparison:
    """The same comparison with the Pareto mark taken over other axes.

    Raises:
        UsageError: if an axis is no metric of this experiment, or says of no direction that it is better.
    """
    found = {}
    for name in (quality, cost):
        column = comparison.find(name)
        if column is None and name not in METRICS or column is not None and column.direction == "none":
            known = ", ".join(c.key for c in comparison.columns if c.direction != "none") or "none is measured yet"
            raise UsageError(f"`{name}` cannot be an axis of the Pareto front; axes of this experiment: {known}")
        found[name] = column.key if column else None
    axes = (found[quality], found[cost])
    optimal = front(comparison, axes[0], axes[1]) if axes[0] and axes[1] else frozenset()
    rows = tuple(r.model_copy(update={"pareto": r.name in optimal}) for r in comparison.rows)
    return comparison.model_copy(update={"rows": rows, "quality": axes[0], "cost": axes[1]})


def front(comparison: Comparison, quality: str, cost: str) -> frozenset[str]:
    """Names of the combinations that are Pareto-optimal in two columns, each among those measured alike."""
    columns = [comparison.column(key) for key in (quality, cost)]
    directions: list[Literal["higher", "lower"]] = [
        "higher" if column.direction == "higher" else "lower" for column in columns
    ]
    alike: dict[tuple[str | None, ...], list[tuple[str, tuple[float, ...]]]] = defaultdict(list)
    for r in comparison.rows:
        cells = [r.cells[column.key] for column in columns]
        point = tuple(cell.value for cell in cells if cell.value is not None)
        if len(point) == len(columns):
            alike[tuple(cell.group for cell in cells)].append((r.name, point))
    return frozenset(
        name
        for members in alike.values()
        for (name, _), optimal in zip(members, pareto_front([p for _, p in members], directions), strict=True)
        if optimal
    )


class _Results:
    """What the store holds of each finished stage."""

    def __init__(self) -> None:
        self.rows: dict[str, list[MetricRow]] = {}
        self.train: dict[str, dict[str, Any]] = {}
        self.measure: dict[str, dict[str, Any]] = {}

    def done(self, digest: str) -> bool:
        return digest in self.rows or digest in self.train


def _read(plan: Plan, store: ArtifactStore) -> _Results:
    results = _Results()
    for stage in plan.walk():
        folder = stage_folder(store, stage.digest)
        if folder is None:
            continue
        if isinstance(stage, MeasureStage):
            results.rows[stage.digest] = read_rows(folder)
            results.measure[stage.digest] = read_result(folder) if (folder / "result.json").exists() else {}
        else:
            results.train[stage.digest] = read_result(folder)
    return results


def _rows_of(plan: Plan, results: _Results, combination: Combination) -> list[MetricRow] | None:
    """All metric rows of one combination and seed, those of training included; `None` while it is not measured."""
    taken = results.rows.get(combination.measured_by)
    if taken is None:
        return None
    known = {r.name for r in taken}
    return taken + [r for r in _training_rows(plan, results, combination) if r.name not in known]


def _training_rows(plan: Plan, results: _Results, combination: Combination) -> list[MetricRow]:
    """Cost of training: time over all stages it needs (shared ones in full), speed of the last one."""
    stages = [d for d in combination.stages if isinstance(plan.stages[d], TrainStage)]
    finished = [results.train[d] for d in stages if d in results.train]
    seconds = [_number(result.get("seconds")) for result in finished]
    if len(finished) < len(stages) or any(s is None for s in seconds):
        total = row("train_seconds", None, reason="a training stage of this combination left no running time")
    else:
        total = row("train_seconds", sum(s for s in seconds if s is not None))
    speed = _number(results.train.get(combination.result, {}).get("images_per_s"))
    reason = None if speed is not None else "the last stage trained on no images"
    return [total, row("train_images_per_s", speed, reason=reason)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value and abs(value) < float("inf") else None


def _column_keys(rows: Iterable[MetricRow]) -> dict[str, bool]:
    """Metric → whether its batch size belongs into the key, because it was taken at several."""
    sizes: dict[str, set[JsonValue]] = defaultdict(set)
    for r in rows:
        sizes[r.name].add(_batch_size(r))
    return {name: len(found) > 1 for name, found in sizes.items()}


def _batch_size(r: MetricRow) -> int | None:
    size = r.conditions.get("batch_size")
    return size if isinstance(size, int) else None


def _by_column(by_seed: dict[int, list[MetricRow] | None], keys: dict[str, bool]) -> Values:
    values: Values = defaultdict(dict)
    for seed, rows in by_seed.items():
        for r in rows or ():
            size = _batch_size(r)
            values[f"{r.name}_b{size}" if keys[r.name] and size is not None else r.name][seed] = r
    return dict(values)


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
        size = _batch_size(first) if key != first.name else None
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
    results: _Results,
    failures: Mapping[str, str],
) -> Row:
    measured = tuple(c.seed for c in group if c.measured_by in results.rows)
    problems = [_missing(plan, c, results, failures) for c in group if c.seed not in measured]
    failed = any(failures.get(digest) for c in group if c.seed not in measured for digest in c.stages)
    status: Status = "measured" if not problems else "partial" if measured else "failed" if failed else "unfinished"
    detail = "; ".join(dict.fromkeys(problems))
    return Row(
        name=name,
        labels=group[0].labels,
        seeds=tuple(c.seed for c in group),
        measured=measured,
        status=status,
        detail=detail,
        cells={c.key: _cell(values.get(c.key, {}), letters[c.key], detail) for c in columns},
    )


def _missing(plan: Plan, combination: Combination, results: _Results, failures: Mapping[str, str]) -> str:
    """Why a combination is not measured: the first stage that failed, or else the first that is to run."""
    seed = f"seed {combination.seed}: "
    for digest in combination.stages:
        if failures.get(digest) and not results.done(digest):
            return f"{seed}`{plan.stages[digest].label}` failed: {failures[digest]}"
    first = next(d for d in combination.stages if not results.done(d))
    done = sum(results.done(d) for d in combination.stages)
    return f"{seed}{done} of {len(combination.stages)} stages done; next is `{plan.stages[first].label}`"


def _cell(by_seed: Mapping[int, MetricRow], letters: Mapping[str, str], detail: str) -> Cell:
    """Mean and spread over the seeds that were measured alike."""
    taken = {seed: r for seed, r in by_seed.items() if r.value is not None}
    if not taken:
        reasons = dict.fromkeys(r.reason for r in by_seed.values() if r.reason)
        return Cell(value=None, reason="; ".join(reasons) or detail or "not taken for this combination")
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
    """The rows with the best cell of each column and group of conditions marked; a tie marks all of them."""
    marked = [dict(r.cells) for r in rows]
    for column in columns:
        rivals: dict[str | None, list[float]] = defaultdict(list)
        for r in rows:
            cell = r.cells[column.key]
            if cell.value is not None:
                rivals[cell.group].append(cell.value)
        if column.direction == "none":
            continue
        best = {g: (max if column.direction == "higher" else min)(v) for g, v in rivals.items() if len(v) > 1}
        for cells in marked:
            cell = cells[column.key]
            if cell.value is not None and best.get(cell.group) == cell.value:
                cells[column.key] = cell.model_copy(update={"best": True})
    return [r.model_copy(update={"cells": cells}) for r, cells in zip(rows, marked, strict=True)]


def _stage_costs(plan: Plan, results: _Results, failures: Mapping[str, str]) -> Iterable[StageCost]:
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
            seconds=_number(result.get("seconds")),
            images_per_s=_number(result.get("images_per_s")),
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
