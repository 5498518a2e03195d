"""The front against its definition, applied by brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reporting.pareto import Direction, pareto_front

# Few distinct values, so that ties and equal points are common.
values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
axes = st.lists(st.sampled_from(["higher", "lower"]), min_size=1, max_size=4)


def better(a: float, b: float, direction: Direction) -> bool:
    return a > b if direction == "higher" else a < b


def by_definition(points: list[list[float]], directions: list[Direction]) -> list[bool]:
    def beats(p: list[float], q: list[float]) -> bool:
        no_worse = not any(better(b, a, d) for a, b, d in zip(p, q, directions, strict=True))
        return no_worse and any(better(a, b, d) for a, b, d in zip(p, q, directions, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]


@given(st.data(), axes)
def test_agrees_with_the_definition(data: st.DataObject, directions: list[Direction]) -> None:
    points = data.draw(st.lists(st.lists(values, min_size=len(directions), max_size=len(directions)), max_size=25))
    assert pareto_front(points, directions) == by_definition(points, directions)


def test_accuracy_against_cost() -> None:
    points = [(70.0, 1.0), (72.0, 2.0), (71.0, 2.0), (72.0, 2.0), (69.0, 1.0), (60.0, 0.5)]
    assert pareto_front(points, ["higher", "lower"]) == [True, True, False, True, False, True]


def test_nothing_gives_nothing() -> None:
    assert pareto_front([], ["higher"]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"point 1 .* not finite"):
        pareto_front([(1.0, 1.0), (bad, 1.0)], ["higher", "lower"])


def test_ragged_points_are_refused() -> None:
    with pytest.raises(ValueError, match="point 0 has 1 values, but there are 2 axes"):
        pareto_front([(1.0,)], ["higher", "lower"])
