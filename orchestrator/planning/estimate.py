"""How many device-hours the stages that are to run will take, and what they cost, from what earlier stages took.

A stage's time is taken from earlier stages of the same network, strategies and teachers; where there are none, from the
one nearest in multiply-accumulates (MACs), scaled by them. Pure: no store, no clock.

    images  = epochs · images an epoch
    hours   = images · (device-seconds an image) / 3600
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Basis = Literal["same", "scaled", "unknown"]


@dataclass(frozen=True)
class Work:
    """A stage that is to run."""

    label: str
    key: str
    """Equal for stages whose images take the same work: network, strategies, teachers, precision, batch size."""
    images: int
    """Images trained on in all epochs."""
    macs: float | None
    """MACs of one trained image, if they can be known without the network."""


@dataclass(frozen=True)
class Measured:
    """A stage that is finished."""

    key: str
    macs: float | None
    seconds_per_image: float
    """Device-seconds of the whole stage, evaluation and set-up included, over the images it was trained on."""


@dataclass(frozen=True)
class Range:
    """A number with its uncertainty; `low` and `high` are `None` where nothing is known of that."""

    likely: float
    low: float | None
    high: float | None

    def __add__(self, other: Range) -> Range:
        return Range(self.likely + other.likely, _sum(self.low, other.low), _sum(self.high, other.high))

    def __mul__(self, factor: float) -> Range:
        return Range(
            self.likely * factor,
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
        )


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will take."""

    label: str
    basis: Basis
    hours: Range | None
    """Device-hours; `None` if nothing is known."""


@dataclass(frozen=True)
class Estimate:
    """What a plan's missing stages will take."""

    stages: tuple[StageEstimate, ...]
    runs: int
    """Finished stages that it rests on."""

    @property
    def hours(self) -> Range | None:
        """Device-hours of the stages of which something is known; `None` if that is none."""
        known = [stage.hours for stage in self.stages if stage.hours is not None]
        return _total(known) if known else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Labels of the stages of which nothing is known; they are not in `hours`."""
        return tuple(stage.label for stage in self.stages if stage.hours is None)

    def count(self, basis: Basis) -> int:
        """Stages that rest on this."""
        return sum(stage.basis == basis for stage in self.stages)


def estimate(work: Iterable[Work], measured: Sequence[Measured]) -> Estimate:
    """Estimate every stage.

    The range of a stage with earlier runs of its own kind goes from the fastest to the slowest of them. With a single
    one, and for scaled ones, it is as wide as earlier runs differ: of equal kinds for the one, in seconds a MAC for
    the other. Ranges of several stages are added end to end, because what makes one slow makes all slow.
    """
    return Estimate(tuple(_of_stage(stage, measured) for stage in work), len(measured))


def _of_stage(work: Work, measured: Sequence[Measured]) -> StageEstimate:
    same = [m.seconds_per_image for m in measured if m.key == work.key]
    if same:
        likely = sum(same) / len(same)
        seconds = Range(likely, min(same), max(same)) if len(same) > 1 else _as_spread(likely, measured)
        return StageEstimate(work.label, "same", seconds * (work.images / 3600))
    comparable = [m for m in measured if m.macs and m.macs > 0]
    if work.macs and comparable:
        macs = work.macs
        nearest = min(comparable, key=lambda m: abs(math.log((m.macs or 1) / macs)))
        assert nearest.macs is not None
        per_mac = [m.seconds_per_image / m.macs for m in comparable if m.macs]
        likely = nearest.seconds_per_image / nearest.macs * macs
        several = len(per_mac) > 1
        seconds = Range(likely, min(per_mac) * macs, max(per_mac) * macs) if several else Range(likely, None, None)
        return StageEstimate(work.label, "scaled", seconds * (work.images / 3600))
    return StageEstimate(work.label, "unknown", None)


def _as_spread(likely: float, measured: Sequence[Measured]) -> Range:
    """A range from how much runs of one kind have differed from their mean, at most; unknown if none was repeated."""
    kinds: dict[str, list[float]] = {}
    for m in measured:
        kinds.setdefault(m.key, []).append(m.seconds_per_image)
    repeated = [(values, sum(values) / len(values)) for values in kinds.values() if len(values) > 1]
    if not repeated:
        return Range(likely, None, None)
    low = min(min(values) / mean for values, mean in repeated)
    high = max(max(values) / mean for values, mean in repeated)
    return Range(likely, likely * low, likely * high)


def _total(ranges: Sequence[Range]) -> Range:
    total = ranges[0]
    for one in ranges[1:]:
        total = total + one
    return total


def _sum(first: float | None, second: float | None) -> float | None:
    """An end of a sum is unknown if an end of a summand is."""
    return None if first is None or second is None else first + second
