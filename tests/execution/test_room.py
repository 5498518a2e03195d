"""Where lanes fit beside those that run."""

from __future__ import annotations

import pytest

from orchestrator.execution.room import room

NODES = {"a": {"CPU": 4.0}, "b": {"CPU": 2.0}, "c": {"GPU": 8.0}}


@pytest.mark.parametrize(
    ("placed", "starting", "free"),
    [
        ([], 0, {"a": 2, "b": 1, "c": 0}),
        ([["a"], ["a", "b"]], 0, {"a": 0, "b": 0, "c": 0}),
        ([["gone", "a"]], 0, {"a": 1, "b": 1, "c": 0}),
        ([], 1, {"a": 1, "b": 1, "c": 0}),
        ([], 9, {"a": 0, "b": 0, "c": 0}),
    ],
)
def test_room(placed: list, starting: int, free: dict) -> None:
    found = room(NODES, {"CPU": 2.0}, 2, placed, starting)
    assert found.total == {"a": 2, "b": 1, "c": 0}
    assert found.free == free
    assert found.lane_fits_without(frozenset()) == (sum(free.values()) >= 2)


def test_without_a_node() -> None:
    found = room(NODES, {"CPU": 2.0}, 2, [])
    assert found.lane_fits_without(frozenset("b"))
    assert not found.lane_fits_without(frozenset("a"))
    assert not found.usable_without(frozenset("a"))
    assert not room({}, {"CPU": 1.0}, 1, [], starting=3).usable_without(frozenset())
