"""With how many workers lanes are started and when they grow: decided from how the queue stands, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.execution import lanes as module
from orchestrator.execution.admission import admit
from orchestrator.execution.lanes import Lanes
from orchestrator.execution.state import QueueState
from specs.resources import ResourcesSpec

OF_24, OF_25 = (2, 3, 4, 6, 8), (5,)


def state(**changes: Any) -> QueueState:
    placed = changes.pop("placed", {0: (), 1: ()})
    return QueueState((), changes.pop("busy", {}), 9, 2, placed, (), **changes)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Lanes:
    """Two lanes of two to eight workers on eight CPUs. A thread that waits for a lane ends when the process does."""
    spec = ResourcesSpec.model_validate({"workers": {"min": 2, "max": 8}, "lanes": 2})
    common: Any = SimpleNamespace(run_name="test")
    monkeypatch.setattr(Lanes, "_start", lambda self, lane, workers, avoid=frozenset(): start(self, lane, workers))
    made = Lanes(common, admit(spec, [{"CPU": 8.0}], stages=9), spec)
    made._nodes = {"node": {"CPU": 8.0}}
    return made


def start(lanes: Lanes, lane: int, workers: int) -> None:
    """Without the thread."""
    lanes._workers[lane] = workers
    lanes._threads[lane] = None  # type: ignore[assignment]


def test_the_most_urgent_stage_decides_and_the_next_lane_is_for_the_next(made: Lanes) -> None:
    made.start_wanted(state(sizes=(OF_25, OF_24)))
    assert made._workers == {0: 5, 1: 3}


def test_without_room_for_the_most_urgent_the_next_is_served(made: Lanes) -> None:
    start(made, 1, 4)
    busy: Any = {"placed": {0: (), 1: ("node",) * 4}, "busy": {1: "x"}}
    made.start_wanted(state(sizes=(OF_25,), **busy))
    assert made._workers == {1: 4}
    made.start_wanted(state(sizes=(OF_25, OF_24), **busy))
    assert made._workers == {1: 4, 0: 4}


def test_a_cluster_too_small_for_what_waits_has_no_room(made: Lanes) -> None:
    made._nodes = {"node": {"CPU": 4.0}}
    assert "holds no lane" in str(made.without_room(state(sizes=(OF_25,))))
    assert made.without_room(state(sizes=(OF_24,))) is None


@pytest.mark.parametrize(("counts", "grows"), [(OF_24, False), ((2, 4, 5, 7), True)])
def test_a_lane_grows_only_to_what_shares_the_batch_of_its_stage(
    made: Lanes, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], grows: bool
) -> None:
    start(made, 0, 4)
    made._nodes = {"node": {"CPU": 5.0}}
    now = state(placed={0: ("node",) * 4, 1: ()}, busy={0: "x"}, sizes_of={0: counts})
    now = QueueState(**{**now.__dict__, "wanted": 1})
    monkeypatch.setattr(module, "_GROW_AFTER_S", -1.0)
    found = made.to_grow(now, made._room(now))
    assert (found is not None) == grows
