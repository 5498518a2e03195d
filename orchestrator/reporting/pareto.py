"""Pareto optimality: which points no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["higher", "lower"]


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[bool]:
    """Say of each point whether it is Pareto-optimal.

    A point is optimal when no other point is at least as good on every axis and better on one. Equal points do not
    beat each other, so ties are optimal together.

    Args:
        points: one point a row, one value an axis; finite.
        directions: for each axis, which way is better.

    Returns:
        One flag a point, in the order of `points`.

    Raises:
        ValueError: if a point has another number of axes, or a value is NaN or infinite.
    """
    if not directions:
        raise ValueError("a Pareto front needs at least one axis")
    signs = [1.0 if direction == "higher" else -1.0 for direction in directions]
    goods: list[tuple[float, ...]] = []
    for i, point in enumerate(points):
        if len(point) != len(signs):
            raise ValueError(f"point {i} has {len(point)} values, but there are {len(signs)} axes")
        if not all(math.isfinite(value) for value in point):
            raise ValueError(f"point {i} has a value that is not finite: {tuple(point)}")
        goods.append(tuple(sign * value for sign, value in zip(signs, point, strict=True)))

    # Best first in lexicographic order: whatever beats a point comes before it, and if anything does, then some
    # point of the front does (being beaten is transitive), so each point is compared with the front alone.
    front: list[tuple[float, ...]] = []
    optimal = [False] * len(goods)
    for i in sorted(range(len(goods)), key=lambda i: goods[i], reverse=True):
        good = goods[i]
        if any(other != good and all(a >= b for a, b in zip(other, good, strict=True)) for other in front):
            continue
        optimal[i] = True
        front.append(good)
    return optimal
