"""One metric of one combination over its seeds: mean, spread, and what stays out of them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from orchestrator.reporting import conditions
from orchestrator.reporting.comparison import NOT_TAKEN, Cell, Column, Row
from orchestrator.reporting.uncertainty import usable
from specs.metrics import MetricRow

Letters = Mapping[str, str]
"""Digest of conditions → letter of the group."""


def make_cell(by_seed: Mapping[int, MetricRow], letters: Letters, detail: str, groups: conditions.Groups) -> Cell:
    """Mean and spread over the seeds that were measured alike, and reliably if any was.

    Args:
        by_seed: seed → row.
        letters: of the column.
        detail: why the combination is not (wholly) measured.
        groups: of the experiment's conditions.
    """
    taken = {seed: r for seed, r in by_seed.items() if r.value is not None}
    if not taken:
        reasons = dict.fromkeys(r.reason for r in by_seed.values() if r.reason)
        return Cell(value=None, reason="; ".join(reasons) or detail or NOT_TAKEN)
    trusted = {seed: r for seed, r in taken.items() if not r.unreliable} or taken
    digests = {seed: groups.of(r)[0] for seed, r in trusted.items()}
    kept = conditions.most_common(digests.values())
    values = {s: float(r.value) for s, r in trusted.items() if digests[s] == kept and r.value is not None}
    left_out: list[str] = []
    if len(values) < len(by_seed):
        left_out += [
            f"seed {s} was taken under conditions {letters.get(d, '?')}" for s, d in digests.items() if d != kept
        ]
        left_out += [f"seed {s} is unreliable: {r.unreliable}" for s, r in taken.items() if s not in trusted]
        left_out += [f"seed {s}: {r.reason}" for s, r in by_seed.items() if r.value is None and r.reason]
    doubts = dict.fromkeys(doubt for s in values if (doubt := trusted[s].unreliable))
    mean, std = mean_and_std(list(values.values()))
    return Cell(
        value=mean,
        std=std,
        num_seeds=len(values),
        by_seed=values,
        group=letters.get(kept),
        interval=trusted[next(iter(values))].interval if len(values) == 1 else None,
        unreliable="; ".join(doubts) or None,
        reason="left out of the mean: " + "; ".join(left_out) if left_out else None,
    )


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1), which a single value does not have; 0 for equal values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    if min(values) == max(values):  # the mean of equal values may differ from them in the last digit
        return values[0], 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mark_best(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """The rows with the best cell of each column and group of conditions marked; a tie marks all of them,
    but where all are equal none is best. Unreliable values do not take part."""
    marked = [dict(r.cells) for r in rows]
    for column in columns:
        if column.direction == "none":
            continue
        rivals: dict[str | None, list[tuple[float, dict[str, Cell]]]] = defaultdict(list)
        for cells in marked:
            cell = cells[column.key]
            if cell.value is not None and usable(cell):
                rivals[cell.group].append((cell.value, cells))
        for alike in rivals.values():
            values = {value for value, _ in alike}
            best = max(values) if column.direction == "higher" else min(values)
            for value, cells in alike:
                if len(values) > 1 and value == best:
                    cells[column.key] = cells[column.key].model_copy(update={"best": True})
    return [r.model_copy(update={"cells": cells}) for r, cells in zip(rows, marked, strict=True)]
