"""The threshold with which a network of early exits meets a target, found exactly among all thresholds there are.

Between two neighbouring confidences of the images at hand all thresholds do the same, so there are finitely many
choices. All of them are looked at, in one sweep over the sorted confidences.

As in the budgeted batch classification of MSDNet (Huang et al. 2018, arXiv:1703.09844), the threshold is set on
validation images, for an expected cost; here one threshold serves all exits. A target for accuracy is relative to the
network's own, as quality targets of MLPerf Inference are (Reddi et al. 2020, arXiv:1911.02549): what a network will
reach is not known before it is trained.

Shapes: n images, A ways out, K choices of a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.ways_out import Target


@dataclass(frozen=True, eq=False)
class Choices:
    """All thresholds that differ in what they do to these images, ascending."""

    threshold: NDArray[np.float32]
    """[K]; in the middle between two confidences, so that rounding moves no image. The last is 1."""
    macs: NDArray[np.float64]
    """Expected MACs of an image, as a share of those without early exits [K]."""
    hits: NDArray[np.int64]
    """Images answered rightly [K]."""


@dataclass(frozen=True)
class Found:
    """The threshold that was found, and what it does to the images on which it was found."""

    option: str
    """The target's option."""
    wanted: float
    """The target's value."""
    met: bool
    """`False`: no threshold meets the target, and this is the one that comes nearest."""
    threshold: float
    expected_macs: float
    """Share of the MACs without early exits."""
    kept_accuracy: float
    """Share of the top-1 with which no image leaves early; 1 where that is 0."""


def choices(confidence: NDArray[np.float32], hits: NDArray[np.bool_], macs: NDArray[np.float64]) -> Choices:
    """What each threshold does. An image leaves at the first way out where its confidence exceeds the threshold.

    Args:
        confidence: at all ways but the last, in [0, 1] [A − 1, n]; no number = never confident.
        hits: whether the answer is right [A, n].
        macs: cost of leaving by each way, as a share of that without early exits [A].
    """
    sure = np.nan_to_num(confidence.astype(np.float32), nan=0.0)
    levels = np.unique(sure)
    K, n = len(levels) + 1, sure.shape[1]
    # Choice k is a threshold from level k − 1 on, below level k. An image leaves by way a at thresholds from the
    # highest confidence that it had before to the one that it has there.
    place = np.searchsorted(levels, sure) + 1
    ends = np.vstack([place, np.full((1, n), K)])
    begins = np.vstack([np.zeros((1, n), dtype=np.int64), np.maximum.accumulate(place, axis=0)])
    leaving = ends > begins
    expected, right = np.zeros(K), np.zeros(K, dtype=np.int64)
    for way, cost in enumerate(macs):
        expected += cost * _covered(begins[way], ends[way], leaving[way], K) / n
        right += _covered(begins[way], ends[way], leaving[way] & hits[way], K)
    found = Choices(_between(levels), expected, right)
    if levels[0] > 0:
        return found
    # No threshold is below a confidence of 0.
    return Choices(found.threshold[1:], found.macs[1:], found.hits[1:])


def meet(target: Target, confidence: NDArray[Any], hits: NDArray[np.bool_], macs: NDArray[np.float64]) -> Found:
    """The threshold that meets a target, or comes nearest. Arguments as `choices` takes them.

    Of the thresholds with few enough MACs it is the highest, so that the budget is used up, and no label has a say. Of
    those with enough accuracy it is one with the fewest MACs; of equals the highest.
    """
    all_of_them = choices(confidence, hits, macs)
    whole = int(hits[-1].sum())
    if target.option == "target_macs":
        fitting = all_of_them.macs <= target.wanted + 1e-9
        met = bool(fitting.any())
        last = len(fitting) - 1
        chosen = last - int(np.argmax(fitting[::-1] if met else -all_of_them.macs[::-1]))
    else:
        # Where no image leaves early, nothing of the accuracy is lost.
        fitting, met = all_of_them.hits >= target.wanted * whole - 1e-9, True
        costs = np.where(fitting, all_of_them.macs, np.inf)
        chosen = len(costs) - 1 - int(np.argmin(costs[::-1]))
    return Found(
        option=target.option,
        wanted=target.wanted,
        met=met,
        threshold=float(all_of_them.threshold[chosen]),
        expected_macs=float(all_of_them.macs[chosen]),
        kept_accuracy=int(all_of_them.hits[chosen]) / whole if whole else 1.0,
    )


def _covered(begins: NDArray[Any], ends: NDArray[Any], counted: NDArray[np.bool_], num: int) -> NDArray[np.int64]:
    """How many of the counted intervals [begin, end) hold each of the numbers below `num`."""
    opened = np.bincount(begins[counted], minlength=num + 1)
    closed = np.bincount(ends[counted], minlength=num + 1)
    covered: NDArray[np.int64] = np.cumsum(opened - closed)[:num]
    return covered


def _between(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A threshold below all levels, one from each level on and below the next, and 1."""
    low = np.concatenate([np.zeros(1, dtype=np.float32), levels[:-1]])
    middle = ((low.astype(np.float64) + levels) / 2).astype(np.float32)
    middle = np.where(middle < levels, middle, low)  # neighbouring numbers have no middle
    return np.concatenate([middle, np.ones(1, dtype=np.float32)])
