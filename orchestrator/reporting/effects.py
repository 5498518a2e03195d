"""Main effects of the axes' labels and interactions of each pair, over whatever the matrix left.

Only runs (a combination with a seed) that differ in nothing else are set against each other, so an unbalanced matrix
(`exclude`, dropped conflicts, missing seeds) gives fewer pairs but no bias from what is not there. Where the design is
balanced, these are the coefficients that least squares gives. Box, Hunter and Hunter, "Statistics for Experimenters".

Pairs of one seed share teacher, initialisation and order of images, so they are no independent evidence: a standard
error is over seeds. With d the differences and d̄ their mean, Σ_seeds (Σ_pairs of the seed (d − d̄))² · S/(S − 1) / n²
is its square for S seeds and n pairs; where all seeds have the same pairs, that is the variance of the seeds' means
by S (Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", section II). What is the same for
all seeds, as counted MACs are, is one value however many seeds there are, and has no such error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.reporting.comparison import Column, Comparison, Effect
from orchestrator.reporting.pareto import Floats
from orchestrator.reporting.uncertainty import is_relative, usable

METRICS_OF_EFFECTS = ("top1", "macs", "throughput", "latency_ms", "peak_memory_mib")


def effects(comparison: Comparison) -> tuple[Effect, ...]:
    """All effects in top-1 (in points) and the principal costs (in percent of them), main effects first in each."""
    found = [comparison.find(name) for name in METRICS_OF_EFFECTS]
    return tuple(effect for column in found if column is not None for effect in effects_in(comparison, column))


def effects_in(comparison: Comparison, column: Column) -> Iterable[Effect]:
    """Effects in one column: differences where it is in percent, relative changes otherwise."""
    runs = _Runs(comparison, column)
    several = [axis for axis, labels in runs.labels.items() if len(labels) > 1]
    for axis in several:
        yield from runs.main_effects(axis)
    for one, other in itertools.combinations(several, 2):
        yield from runs.interactions(one, other)


class _Settings(NamedTuple):
    """What else is set where values are compared, one entry a row of the table."""

    others: NDArray[Any]
    """Other labels and conditions, as one number."""
    seeds: NDArray[Any]

    def of(self, rows: NDArray[np.bool_]) -> _Settings:
        """Those of some rows."""
        return _Settings(self.others[rows], self.seeds[rows])


class _Runs:
    """The runs with a usable value in a column, as integer codes of their labels."""

    def __init__(self, comparison: Comparison, column: Column) -> None:
        self.column = column
        self.relative = is_relative(column)
        self.labels: dict[str, list[str]] = {}
        for r in comparison.rows:
            for axis, label in r.labels.items():
                known = self.labels.setdefault(axis, [])
                if label not in known:
                    known.append(label)
        groups: dict[str | None, int] = {}
        seeds: dict[int, int] = {}
        codes, values = [], []
        for r in comparison.rows:
            cell = r.cells.get(column.key)
            if cell is None or not usable(cell):
                continue
            # An axis that a combination does not have is a label of its own, which no effect is taken of.
            own = [known.index(r.labels[axis]) if axis in r.labels else -1 for axis, known in self.labels.items()]
            group = groups.setdefault(cell.group, len(groups))
            for seed, value in cell.by_seed.items():
                if value > 0 or not self.relative:
                    codes.append([*own, group, seeds.setdefault(seed, len(seeds))])
                    values.append(value)
        self.codes: NDArray[np.int64] = np.array(codes, dtype=np.int64).reshape(len(codes), len(self.labels) + 2)
        # A run's codes are the digits of one number, for numbers are sorted faster than rows of codes.
        sizes = [1 + len(known) for known in (*self.labels.values(), groups, seeds)]
        places = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        self.places = np.array(places, dtype=np.int64 if math.prod(sizes) < 2**63 else object)
        self.num_seeds = sizes[-1]
        """One more than there are."""
        self.values: Floats = np.array(values, dtype=np.float64)
        if self.relative:
            self.values = np.log(self.values)

    def main_effects(self, axis: str) -> Iterable[Effect]:
        table, settings = self._table(axis)
        first, *others = self.labels[axis]
        for i, label in enumerate(others, start=1):
            yield from self._effect({axis: label}, {axis: first}, table[:, i] - table[:, 0], {}, settings)

    def interactions(self, one: str, other: str) -> Iterable[Effect]:
        table, settings = self._table(one, other)
        against = {one: self.labels[one][0], other: self.labels[other][0]}
        for i, label in enumerate(self.labels[one][1:], start=1):
            for j, second in enumerate(self.labels[other][1:], start=1):
                of_one, of_other = table[:, i, 0] - table[:, 0, 0], table[:, 0, j] - table[:, 0, 0]
                both = table[:, i, j] - table[:, 0, 0]
                labels = {one: label, other: second}
                alone = {one: of_one, other: of_other}
                yield from self._effect(labels, against, both - of_one - of_other, alone, settings)

    def _table(self, *axes: str) -> tuple[Floats, _Settings]:
        """Values by everything else (other labels, conditions, seed) and the labels of these axes; NaN = no run."""
        positions = [list(self.labels).index(axis) for axis in axes]
        sizes = [len(self.labels[axis]) for axis in axes]
        present = (self.codes[:, positions] >= 0).all(axis=1)
        codes, values = self.codes[present], self.values[present]
        rest = np.delete(codes, positions, axis=1) @ np.delete(self.places, positions)
        settings, index = np.unique(rest, return_inverse=True)
        table: Floats = np.full((len(settings), *sizes), np.nan)
        table[(index, *(codes[:, p] for p in positions))] = values
        # The seed is the last digit, whose place is 1.
        return table, _Settings(settings // self.num_seeds, settings % self.num_seeds)

    def _effect(
        self,
        labels: dict[str, str],
        against: dict[str, str],
        differences: Floats,
        alone: dict[str, Floats],
        settings: _Settings,
    ) -> Iterable[Effect]:
        complete = ~np.isnan(differences)
        if not complete.any():
            return
        if _same_for_all_seeds(differences[complete], settings.of(complete)):
            _, first = np.unique(settings.others[complete], return_index=True)
            complete = np.isin(np.arange(len(complete)), np.flatnonzero(complete)[first])
            error = None
        else:
            error = _std_error(differences[complete], settings.seeds[complete])
        taken = differences[complete]
        if error is not None and self.relative:
            error *= 100 * float(np.exp(taken.mean()))
        yield Effect(
            labels=labels,
            against=against,
            column=self.column.key,
            relative=self.relative,
            value=self._scaled(taken.mean()),
            std_error=error,
            num_pairs=len(taken),
            alone={axis: self._scaled(part[complete].mean()) for axis, part in alone.items()},
        )

    def _scaled(self, value: float) -> float:
        """A mean of logarithms as a change in percent; a mean difference as it is."""
        return 100 * float(np.expm1(value)) if self.relative else float(value)


def _same_for_all_seeds(differences: Floats, settings: _Settings) -> bool:
    """Whether there are several seeds, and they agree to the last digit wherever they meet."""
    _, index, counts = np.unique(settings.others, return_inverse=True, return_counts=True)
    low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(low, index, differences)
    np.maximum.at(high, index, differences)
    return bool((counts > 1).any() and (low == high).all())


def _std_error(differences: Floats, seeds: NDArray[Any]) -> float | None:
    """Standard error of the mean, the pairs of a seed taken together; `None` with one seed."""
    found, index = np.unique(seeds, return_inverse=True)
    S = len(found)
    if S < 2:
        return None
    sums = np.bincount(index, weights=differences - differences.mean())
    return float(np.sqrt((sums**2).sum() * S / (S - 1)) / len(differences))
