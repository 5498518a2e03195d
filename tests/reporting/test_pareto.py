"""The front against its definition, applied by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reporting.pareto import on_front

# Few distinct values, so that ties and equal points are common.
values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
draws = st.lists(st.lists(st.tuples(values, values), min_size=7, max_size=7), min_size=1, max_size=4)


def by_definition(points: list[tuple[float, float]]) -> list[bool]:
    def beats(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p[0] >= q[0] and p[1] <= q[1] and p != q

    return [not any(beats(other, point) for other in points) for point in points]


@given(draws)
def test_every_draw_agrees_with_the_definition(points: list[list[tuple[float, float]]]) -> None:
    array = np.array(points)
    flags = on_front(array[..., 0], array[..., 1])
    assert flags.tolist() == [by_definition(draw) for draw in points]


def test_accuracy_against_cost() -> None:
    quality, cost = [70.0, 72.0, 71.0, 72.0, 69.0, 60.0], [1.0, 2.0, 2.0, 2.0, 1.0, 0.5]
    assert on_front(np.array(quality), np.array(cost)).tolist() == [True, True, False, True, False, True]


def test_nothing_gives_nothing() -> None:
    assert on_front(np.empty((3, 0)), np.empty((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        on_front(np.array([1.0, bad]), np.array([1.0, 1.0]))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), but costs \(1,\)"):
        on_front(np.zeros(2), np.zeros(1))
