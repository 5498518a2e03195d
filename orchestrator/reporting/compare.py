"""Plan and store → comparison: means over seeds, ratios, Pareto-optimal combinations, and what may be ranked.

Only committed artefacts count. A combination is one row whatever its seeds; values taken under different conditions
of measurement (``conditions.py``) fall into groups, and nothing is ranked across groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from cluster.storage import ArtifactStore
from orchestrator.planning import failed
from orchestrator.planning.plan import Combination, Plan
from orchestrator.reporting import conditions
from orchestrator.reporting.cells import Letters, make_cell, mark_best
from orchestrator.reporting.claims import TYPICAL_CLAIM, check, read_claim, setting_of
from orchestrator.reporting.comparison import Column, Comparison, Row, StageCost, Status
from orchestrator.reporting.conditions import Groups
from orchestrator.reporting.curves import curves
from orchestrator.reporting.effects import effects
from orchestrator.reporting.front import with_axes
from orchestrator.reporting.notes import notes
from orchestrator.reporting.results import Results, batch_size, read_results, rows_by_column
from orchestrator.reporting.stored import number
from specs.metrics import METRICS, MetricRow

RATIOS = {
    "params": "params_ratio",
    "macs": "macs_ratio",
    "throughput": "throughput_ratio",
    "latency_ms": "latency_ratio",
    "peak_memory_mib": "peak_memory_ratio",
    "checkpoint_mib": "checkpoint_ratio",
    "energy_j": "energy_ratio",
}
"""Metric → the metric that holds its ratio to the baseline."""

Values = dict[str, dict[int, MetricRow]]
"""Column key → seed → row, of one combination."""


def compare(
    plan: Plan,
    store: ArtifactStore,
    *,
    cost: str = "macs",
    quality: str = "top1",
    failures: Mapping[str, str] | None = None,
) -> Comparison:
    """Put all combinations of a plan side by side.

    Args:
        plan: the experiment's plan.
        store: the store its stages were committed to.
        cost: metric (or column key) that the quality is weighed against for the Pareto front.
        quality: the front's other axis.
        failures: digest of a stage → why it failed; `None` = as the store's notes say.

    Raises:
        UsageError: if an axis is no metric of this experiment.
        StoreError: if an artefact is damaged.
    """
    if failures is None:
        failures = failed.reasons(plan, store)
    results = read_results(plan, store)
    named: dict[str, list[Combination]] = defaultdict(list)
    values: dict[str, Values] = {}
    for combination in plan.combinations:
        named[combination.name].append(combination)
    for (name, seed), keyed in rows_by_column(plan, results).items():
        for key, r in keyed.items():
            values.setdefault(name, {}).setdefault(key, {})[seed] = r
    groups = Groups()
    columns = _columns(values, groups)
    letters = {column.key: {conditions.digest(c): letter for letter, c in column.groups.items()} for column in columns}

    rows = [
        _row(plan, name, seeds, values.get(name, {}), columns, letters, groups, results, failures)
        for name, seeds in named.items()
    ]
    comparison = Comparison(
        experiment=plan.experiment,
        quality=None,
        cost=None,
        columns=tuple(columns),
        rows=tuple(mark_best(rows, columns)),
        stages=tuple(_stage_costs(plan, results, failures)),
        stages_alone=plan.stages_alone(),
        dropped={d.name: d.reasons for d in plan.dropped},
        curves=tuple(curves(plan.combinations, results.points, letters, groups)),
    )
    comparison = with_axes(comparison, cost, quality)
    typical = (check(read_claim(TYPICAL_CLAIM), comparison, setting_of(plan)),) if columns else ()
    return comparison.model_copy(
        update={
            "notes": tuple(notes(comparison, plan, results.train)),
            "effects": effects(comparison),
            "claims": typical,
        }
    )


def _columns(values: Mapping[str, Values], groups: Groups) -> list[Column]:
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
                digest, needed = groups.of(r)
                distinct.setdefault(digest, needed)
        lettered = {_letter(i): needed for i, needed in enumerate(distinct.values())}
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
                groups=lettered,
                differences=conditions.differences(lettered),
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
    letters: Mapping[str, Letters],
    groups: Groups,
    results: Results,
    failures: Mapping[str, str],
) -> Row:
    measured = tuple(c.seed for c in group if c.measured_by in results.rows)
    problems: dict[str, list[int]] = defaultdict(list)
    for c in group:
        if c.seed not in measured:
            problems[_missing(plan, c, results, failures)].append(c.seed)
    any_failed = any(failures.get(digest) for c in group if c.seed not in measured for digest in c.stages)
    status: Status = "measured" if not problems else "partial" if measured else "failed" if any_failed else "unfinished"
    detail = "; ".join(
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}: {problem}"
        for problem, seeds in problems.items()
    )
    if problems and name in plan.stopped:
        status, detail = "stopped", plan.stopped[name]
    return Row(
        name=name,
        labels=group[0].labels,
        seeds=tuple(c.seed for c in group),
        measured=measured,
        status=status,
        detail=detail,
        cells={c.key: make_cell(values.get(c.key, {}), letters[c.key], detail, groups) for c in columns},
    )


def _missing(plan: Plan, combination: Combination, results: Results, failures: Mapping[str, str]) -> str:
    """Why a combination is not measured: the first stage that failed, or else the first that is to run."""
    for digest in combination.stages:
        if failures.get(digest) and not results.done(digest):
            return f"`{plan.stages[digest].label}` failed: {failures[digest]}"
    first = next(d for d in combination.stages if not results.done(d))
    done = sum(results.done(d) for d in combination.stages)
    return f"{done} of {len(combination.stages)} stages done; next is `{plan.stages[first].label}`"


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
            device_hours=number(result.get("device_hours")),
            teacher_seconds=number(result.get("teacher_seconds")),
        )
