"""Hypervolume in two axes: the area that a Pareto front dominates.

Zitzler and Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
Approach", IEEE Transactions on Evolutionary Computation 3(4), 1999.
"""

from __future__ import annotations

import numpy as np

from orchestrator.reporting.pareto import Floats


def hypervolume(quality: Floats, cost: Floats, reference: tuple[float, float]) -> Floats:
    """Area between the points of each draw and a reference point, by an exact sweep from cheap to dear.

    At cost c the best quality that can be had for at most c stands above the reference; the area below this staircase,
    up to the reference's cost, is the hypervolume. Points worse than the reference add nothing.

    Args:
        quality: higher is better, shape (…, points).
        cost: lower is better, same shape.
        reference: (quality, cost).

    Returns:
        One area a draw, shape (…).
    """
    order = np.argsort(cost, axis=-1)
    c = np.minimum(np.take_along_axis(cost, order, -1), reference[1])
    height = np.maximum(np.take_along_axis(quality, order, -1) - reference[0], 0.0)
    stairs = np.maximum.accumulate(height, axis=-1)
    area: Floats = np.sum(stairs * np.diff(c, axis=-1, append=reference[1]), axis=-1)
    return area
