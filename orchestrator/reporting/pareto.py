"""Pareto optimality in two axes: which points no other point beats, in many draws at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def on_front(quality: Floats, cost: Floats) -> NDArray[np.bool_]:
    """Say of each point whether it is Pareto-optimal among the points of its draw.

    A point is optimal when no other point is at least as good on both axes and better on one. Equal points do not
    beat each other, so ties are optimal together.

    Args:
        quality: higher is better, shape (…, points); finite.
        cost: lower is better, same shape.

    Returns:
        Flags of that shape.

    Raises:
        ValueError: if the shapes differ, or a value is NaN or infinite.
    """
    if quality.shape != cost.shape:
        raise ValueError(f"qualities have shape {quality.shape}, but costs {cost.shape}")
    if not (np.isfinite(quality).all() and np.isfinite(cost).all()):
        raise ValueError("a point has a value that is not finite")
    if quality.shape[-1] == 0:
        return np.zeros(quality.shape, dtype=bool)
    # From cheap to dear, of equally dear ones the best first: a point is beaten if one before it is at least as good,
    # unless that one is its equal.
    order = np.lexsort((-quality, cost), axis=-1)
    q, c = np.take_along_axis(quality, order, -1), np.take_along_axis(cost, order, -1)
    best = np.maximum.accumulate(q, axis=-1)
    rises = np.ones(q.shape, dtype=bool)
    rises[..., 1:] = q[..., 1:] > best[..., :-1]
    steps = np.where(rises, np.arange(q.shape[-1]), 0)
    leader = np.maximum.accumulate(steps, axis=-1)
    optimal = (q == best) & (c == np.take_along_axis(c, leader, -1))
    flags = np.empty_like(optimal)
    np.put_along_axis(flags, order, optimal, -1)
    return flags
