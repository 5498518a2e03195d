"""The Pareto front of a comparison: who is on it, how surely, and how much it dominates.

Nothing is weighed against what was measured under other conditions, and a value marked unreliable is on no front.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UsageError
from orchestrator.reporting.comparison import Cell, Column, Comparison, Hypervolume, Row
from orchestrator.reporting.hypervolume import hypervolume
from orchestrator.reporting.pareto import Floats, on_front
from orchestrator.reporting.uncertainty import draws, usable
from specs.metrics import METRICS
from specs.problems import nearest

_ALIASES = {"accuracy": "top1", "latency": "latency_ms", "memory": "peak_memory_mib", "energy": "energy_j"}


def find_column(comparison: Comparison, name: str) -> Column | None:
    """The column that a person means by a name; `None` if it is a metric that is not measured yet.

    Names are column keys (`throughput_b64`), metrics (of several batch sizes the largest), and `accuracy`, `latency`,
    `memory`, `energy`.

    Raises:
        UsageError: if there is no such metric.
    """
    meant = _ALIASES.get(name, name)
    column = comparison.find(meant)
    if column is None and meant not in METRICS:
        known = {c.key for c in comparison.columns} | METRICS.keys() | _ALIASES.keys()
        near = nearest(name, known)
        measured = ", ".join(c.key for c in comparison.columns) or "none yet"
        raise UsageError(
            f"there is no metric `{name}`"
            + (f"; did you mean `{near}`?" if near else ".")
            + f" Measured here: {measured}."
        )
    return column


def with_axes(comparison: Comparison, cost: str, quality: str = "top1") -> Comparison:
    """The same comparison with its front taken over other axes: marks, probabilities and hypervolumes.

    Raises:
        UsageError: if an axis is no metric of this experiment, or says of no direction that it is better.
    """
    axes = [_axis(comparison, name) for name in (quality, cost)]
    upright, along = axes
    optimal: frozenset[str] = frozenset()
    probability: dict[str, float] = {}
    volumes: list[Hypervolume] = []
    if upright and along:
        optimal = front(comparison, upright.key, along.key)
        for letters, alike in _alike(comparison, upright, along).items():
            group = _Group(upright, along, alike)
            probability |= group.probabilities()
            if len(alike) > 1:
                volumes.append(group.volume("/".join(letters)))
    rows = tuple(
        r.model_copy(update={"pareto": r.name in optimal, "front_probability": probability.get(r.name)})
        for r in comparison.rows
    )
    return comparison.model_copy(
        update={
            "rows": rows,
            "quality": upright and upright.key,
            "cost": along and along.key,
            "hypervolumes": tuple(volumes),
        }
    )


class Fronts:
    """The fronts of a comparison in any two columns, for a report that offers all of them."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._names = np.array([r.name for r in comparison.rows], dtype=object)
        self._columns: dict[str, tuple[Floats, NDArray[np.int64]]] = {}

    def __call__(self, quality: str, cost: str) -> frozenset[str]:
        """Names of the combinations that are Pareto-optimal in two columns, each among those measured alike.

        Raises:
            KeyError: if there is no such column.
        """
        (q, q_groups), (c, c_groups) = self._read(quality), self._read(cost)
        both = ~(np.isnan(q) | np.isnan(c))
        optimal: set[str] = set()
        for groups in np.unique(np.stack([q_groups[both], c_groups[both]], axis=1), axis=0):
            alike = np.flatnonzero(both & (q_groups == groups[0]) & (c_groups == groups[1]))
            optimal.update(self._names[alike[on_front(q[alike], -c[alike])]])
        return frozenset(optimal)

    def _read(self, key: str) -> tuple[Floats, NDArray[np.int64]]:
        """Values of a column, turned so that more is better, and the conditions of each; NaN where none is usable."""
        if key not in self._columns:
            column, rows = self._comparison.column(key), self._comparison.rows
            sign = -1.0 if column.direction == "lower" else 1.0
            letters = {letter: i for i, letter in enumerate(column.groups)}
            values, groups = np.full(len(rows), np.nan), np.full(len(rows), -1)
            for i, r in enumerate(rows):
                cell = r.cells[key]
                if cell.value is not None and usable(cell):
                    values[i], groups[i] = sign * cell.value, letters.get(cell.group or "", -1)
            self._columns[key] = (values, groups)
        return self._columns[key]


def front(comparison: Comparison, quality: str, cost: str) -> frozenset[str]:
    """Names of the combinations that are Pareto-optimal in two columns, each among those measured alike."""
    return Fronts(comparison)(quality, cost)


def _axis(comparison: Comparison, name: str) -> Column | None:
    try:
        column = find_column(comparison, name)
    except UsageError as error:
        raise UsageError(f"`{name}` cannot be an axis of the Pareto front: {error}") from None
    if column is not None and column.direction == "none":
        known = ", ".join(c.key for c in comparison.columns if c.direction != "none") or "none is measured yet"
        raise UsageError(
            f"`{name}` cannot be an axis of the Pareto front, for neither more nor less of it is better; axes of this "
            f"experiment: {known}"
        )
    return column


def _alike(comparison: Comparison, quality: Column, cost: Column) -> dict[tuple[str, str], list[Row]]:
    """Rows with usable values in both columns, by the conditions of both."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for r in comparison.rows:
        cells = [r.cells.get(column.key) for column in (quality, cost)]
        if all(usable(cell) for cell in cells):
            groups[cells[0].group or "", cells[1].group or ""].append(r)  # type: ignore[union-attr]
    return groups


class _Group:
    """Rows that may be weighed against each other; qualities and costs are turned so that more and less are better."""

    def __init__(self, quality: Column, cost: Column, rows: list[Row]) -> None:
        self.columns = (quality, cost)
        self.names = [r.name for r in rows]
        self.cells: tuple[list[Cell], ...] = tuple([r.cells[c.key] for r in rows] for c in self.columns)
        self.signs = (1.0 if quality.direction == "higher" else -1.0, 1.0 if cost.direction == "lower" else -1.0)
        self._drawn: tuple[Floats, Floats] | None = None

    def means(self) -> tuple[Floats, Floats]:
        q, c = (np.array([cell.value for cell in cells], dtype=np.float64) for cells in self.cells)
        return self.signs[0] * q, self.signs[1] * c

    def draws(self) -> tuple[Floats, Floats]:
        if self._drawn is None:
            rng = np.random.default_rng(0)  # the same comparison gives the same probabilities
            q, c = (draws(column, cells, rng) for column, cells in zip(self.columns, self.cells, strict=True))
            self._drawn = self.signs[0] * q, self.signs[1] * c
        return self._drawn

    @property
    def has_seeds(self) -> bool:
        return any(cell.num_seeds > 1 for cell in self.cells[0])

    def probabilities(self) -> dict[str, float]:
        if not self.has_seeds:
            return {}
        share = on_front(*self.draws()).mean(axis=0)
        return dict(zip(self.names, map(float, share), strict=True))

    def volume(self, letters: str) -> Hypervolume:
        q, c = self.means()
        corner = (float(q.min()), float(c.max()))
        std = float(hypervolume(*self.draws(), corner).std(ddof=1)) if self.has_seeds else None
        reference = (self.signs[0] * corner[0], self.signs[1] * corner[1])
        return Hypervolume(value=float(hypervolume(q, c, corner)), std=std, reference=reference, group=letters)
