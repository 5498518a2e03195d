"""Which trials are beaten beyond doubt: in every objective, by more than the spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specs.metrics import METRICS
from specs.search import Objective
from specs.words import counted

SPREADS = 2.0
"""Sample standard deviations over seeds that a difference must exceed."""


@dataclass(frozen=True)
class Standing:
    """What is measured of one trial so far."""

    name: str
    """Its combination."""
    values: Mapping[str, Sequence[float]]
    """Objective → its values, one a seed; all of the same length."""

    @property
    def num_seeds(self) -> int:
        """Seeds that are measured."""
        return min(len(values) for values in self.values.values())


@dataclass(frozen=True)
class Domination:
    """Who is better, and by how much."""

    by: str
    evidence: str


def domination(standing: Standing, others: Sequence[Standing], objectives: Sequence[Objective]) -> Domination | None:
    """The first of the others that dominates a trial, or `None`.

    One trial dominates another if in no objective it is worse, in every objective whose value varies over seeds it is
    better by more than `SPREADS` standard deviations (the larger one of both), and in at least one it is better.

    Args:
        standing: a trial with at least one measured seed.
        others: trials that may dominate it; one with fewer than two seeds has no spread, and does not.
        objectives: what counts.
    """
    for other in others:
        if other.name != standing.name and other.num_seeds >= 2:
            gains = [_gain(standing, other, objective) for objective in objectives]
            clear = [gain > SPREADS * spread if spread else gain >= 0 for gain, spread in gains]
            if all(clear) and any(gain > 0 for gain, _ in gains):
                words = [_words(o, gain, spread) for o, (gain, spread) in zip(objectives, gains, strict=True)]
                seeds = counted(standing.num_seeds, "seed")
                return Domination(
                    other.name,
                    f"dominated after {seeds}: `{other.name}` ({other.num_seeds} seeds) is {', and '.join(words)}",
                )
    return None


def _gain(standing: Standing, other: Standing, objective: Objective) -> tuple[float, float]:
    """By how much the other is better, and the spread of that objective over seeds."""
    mine, its = standing.values[objective.metric], other.values[objective.metric]
    gain = statistics.fmean(its) - statistics.fmean(mine)
    spread = max(statistics.stdev(values) for values in (mine, its) if len(values) > 1)
    return (gain if objective.higher else -gain), spread


def _words(objective: Objective, gain: float, spread: float) -> str:
    definition = METRICS[objective.metric]
    if gain == 0:
        return f"equal in {objective.metric}"
    unit = "points" if definition.unit == "%" else definition.unit
    beyond = f", beyond {SPREADS:g} × the spread of {spread:.3g}" if spread else ""
    return f"better in {objective.metric} by {gain:.3g}{f' {unit}' if unit else ''}{beyond}"
