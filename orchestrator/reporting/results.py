"""Stored results of a plan, and the metric rows of each combination by column.

A metric taken at several batch sizes in one experiment is several columns: `throughput_b1`, `throughput_b64`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Combination, MeasureStage, Plan
from orchestrator.reporting.stored import POINTS, RESULT, ROWS, read_points, read_result, read_rows, stage_folder
from orchestrator.reporting.training_cost import training_rows
from specs.metrics import MetricRow, OperatingPoint

Keyed = dict[str, MetricRow]
"""Column key → row, of one combination and seed."""


class Results:
    """What the store holds of each finished stage."""

    def __init__(self) -> None:
        self.rows: dict[str, list[MetricRow]] = {}
        """Measure stage → its metric rows."""
        self.train: dict[str, dict[str, Any]] = {}
        """Train stage → its `result.json`."""
        self.measure: dict[str, dict[str, Any]] = {}
        """Measure stage → its `result.json`."""

        self.points: dict[str, list[OperatingPoint]] = {}
        """Measure stage → its operating points."""

    def done(self, digest: str) -> bool:
        """Whether the stage is finished."""
        return digest in self.rows or digest in self.train


def read_results(plan: Plan, store: ArtifactStore) -> Results:
    """Read the results of all finished stages; weights are neither read nor verified.

    Raises:
        StoreError: if an artefact is damaged.
    """
    results = Results()
    for stage in plan.walk():
        measured = isinstance(stage, MeasureStage)
        folder = stage_folder(store, stage.digest, *((ROWS, POINTS, RESULT) if measured else (RESULT,)))
        if folder is None:
            continue
        if measured:
            results.rows[stage.digest] = read_rows(folder)
            results.points[stage.digest] = read_points(folder)
            results.measure[stage.digest] = read_result(folder) if (folder / RESULT).exists() else {}
        else:
            results.train[stage.digest] = read_result(folder)
    return results


def rows_by_column(plan: Plan, results: Results) -> dict[tuple[str, int], Keyed]:
    """(Name of the combination, seed) → its rows by column; nothing for those that are not measured."""
    taken = {(c.name, c.seed): _rows_of(plan, results, c) for c in plan.combinations}
    several = _at_several_batch_sizes(r for rows in taken.values() for r in rows or ())
    return {
        who: {f"{r.name}_b{batch_size(r)}" if r.name in several else r.name: r for r in rows}
        for who, rows in taken.items()
        if rows is not None
    }


def _rows_of(plan: Plan, results: Results, combination: Combination) -> list[MetricRow] | None:
    """All metric rows of one combination and seed, those of training included; `None` while it is not measured."""
    taken = results.rows.get(combination.measured_by)
    if taken is None:
        return None
    known = {r.name for r in taken}
    return taken + [r for r in training_rows(plan, combination, results.train) if r.name not in known]


def _at_several_batch_sizes(rows: Iterable[MetricRow]) -> set[str]:
    """Names of the metrics that were taken at more than one batch size, that of training aside: it is no condition of
    measurement but part of the combination."""
    taken = {(r.name, batch_size(r)) for r in rows}
    return {
        name
        for name, count in Counter(name for name, _ in taken).items()
        if count > 1 and not name.startswith("train_")
    }


def batch_size(r: MetricRow) -> int | None:
    """Batch size the row was taken at; `None` if it has none."""
    size = r.conditions.get("batch_size")
    return size if isinstance(size, int) else None
