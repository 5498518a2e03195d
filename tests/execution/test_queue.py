"""The queue's promises: no stage twice, measurements alone, failures stay below, everything settles."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.execution.events import (
    LaneUp,
    NodeExcluded,
    StageFailed,
    StageFinished,
    StageRetried,
    StageSkipped,
    StageStarted,
    StageStopped,
)
from orchestrator.execution.failures import Budgets, Failure, Room
from orchestrator.execution.queue import DEADLINE_GRACE_S, ELSEWHERE_S, IDLE_LANE_S, StageQueue
from orchestrator.execution.shares import Shares
from orchestrator.planning.plan import MeasureStage, NetworkSource, Stage, TrainStage
from orchestrator.training.interface import Progress
from specs.data import Sample
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec
from specs.training import TrainingSpec

DATA = Sample(kind="sample")


def train(name: str, *parents: str, epochs: int = 1) -> TrainStage:
    return TrainStage(
        digest=name,
        label=name,
        digest_parts={},
        parents=parents,
        student=NetworkSource(model=ModelSpec(model="vit_tiny_patch16_224")),
        teacher=None,
        strategies=(),
        training=TrainingSpec(epochs=epochs),
        data=DATA,
        num_classes=10,
        seed=0,
    )


def measure(parent: str) -> MeasureStage:
    return MeasureStage(
        digest=f"m-{parent}",
        label=parent,
        digest_parts={},
        parents=(parent,),
        measurement=MeasurementSpec(),
        data=DATA,
        num_classes=10,
        input_size=28,
    )


def crash(reason: str = "gone") -> Failure:
    return Failure("crash", reason)


def retries(number: int) -> Budgets:
    return Budgets(max_retries=number)


def plan(*stages: Stage) -> dict[str, Stage]:
    return {stage.digest: stage for stage in stages}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Lane:
    """One lane, and its first worker."""

    def __init__(self, queue: StageQueue, number: int = 0, group: str = "g", node: str = "", size: int = 1) -> None:
        self.queue, self.number, self.group, self.turn = queue, number, f"{group}{number}", 0
        queue.join(number, self.group, 0, size, "host:1 cpu", f"worker-{self.group}", node)

    def ask(self) -> str:
        assignment = self.queue.ask(self.number, self.group, self.turn)
        if assignment.kind != "run":
            return assignment.kind
        assert assignment.stage is not None
        self.turn += 1
        return assignment.stage.digest

    def finish(self, digest: str) -> None:
        self.queue.finish(self.number, self.group, digest, {})

    def fail(self, reason: str = "broken", kind: str = "user error") -> int:
        return self.queue.fail(self.number, self.group, self.turn - 1, 0, reason, kind)  # type: ignore[arg-type]


def kinds(queue: StageQueue, kind: type) -> list:
    return [event for event in queue.poll().events if isinstance(event, kind)]


def test_parents_first_and_shared_stage_once() -> None:
    queue = StageQueue(plan(train("teacher"), train("a", "teacher"), train("b", "teacher")), num_lanes=2)
    one, two = Lane(queue, 0), Lane(queue, 1)
    assert one.ask() == "teacher"
    assert two.ask() == "wait"
    one.finish("teacher")
    assert {one.ask(), two.ask()} == {"a", "b"}
    assert one.ask() == "wait", "a lane that holds a stage gets no other"
    one.finish("a")
    assert one.ask() == "end", "what is left is held by the other lane"


def test_done_stages_are_not_handed_out() -> None:
    queue = StageQueue(plan(train("teacher"), train("a", "teacher")), done=["teacher", "elsewhere"])
    assert queue.poll().unsettled == 1
    assert Lane(queue).ask() == "a"


def test_the_longest_chain_goes_first() -> None:
    queue = StageQueue(plan(train("short", epochs=3), train("head"), train("long", "head", epochs=9)))
    assert Lane(queue).ask() == "head"


def test_several_lanes_train_first_and_measure_alone() -> None:
    queue = StageQueue(plan(train("a"), train("b"), measure("a"), measure("b")), num_lanes=2)
    one, two = Lane(queue, 0), Lane(queue, 1)
    assert (one.ask(), two.ask()) == ("a", "b")
    one.finish("a")
    assert one.ask() == "wait", "b is still training"
    two.finish("b")
    assert two.ask() == "m-a"
    assert one.ask() == "wait", "the machine is being measured"
    two.finish("m-a")
    assert one.ask() == "m-b"


def test_one_lane_measures_as_soon_as_it_can() -> None:
    queue = StageQueue(plan(train("a"), train("b"), measure("a"), measure("b")))
    lane = Lane(queue)
    order = []
    while (digest := lane.ask()) != "end":
        order.append(digest)
        lane.finish(digest)
    assert order == ["a", "m-a", "b", "m-b"]


def test_a_failure_takes_its_descendants_and_nothing_else() -> None:
    queue = StageQueue(plan(train("a"), train("b"), train("c", "a"), measure("c"), measure("b")))
    lane = Lane(queue)
    assert lane.ask() == "a"
    assert lane.fail("the reason") == 1
    events = queue.poll().events
    assert StageFailed("a", "the reason") in events
    assert [e for e in events if isinstance(e, StageSkipped)] == [StageSkipped("c", "a"), StageSkipped("m-c", "a")]
    rest = []
    while (digest := lane.ask()) != "end":
        rest.append(digest)
        lane.finish(digest)
    assert rest == ["b", "m-b"]
    assert queue.poll().unsettled == 0


def test_a_stage_of_a_dead_group_is_handed_out_again() -> None:
    queue = StageQueue(plan(train("a", epochs=5), train("b")), num_lanes=2, budgets=retries(1))
    old, other = Lane(queue, 0), Lane(queue, 1)
    assert old.ask() == "a"
    assert other.ask() == "b"
    queue.lost(0, crash("killed"))
    new = Lane(queue, 0, group="second")
    assert new.ask() == "a"
    events = queue.poll().events
    assert [e.attempt for e in events if isinstance(e, StageStarted) and e.stage == "a"] == [1, 2]
    assert [e for e in events if isinstance(e, StageRetried)] == [StageRetried("a", "crash", "killed", "retry")]
    assert old.ask() == "end", "the old group is dead; a late message from it changes nothing"
    old.finish("a")
    assert queue.poll().busy[0] == "a"
    new.finish("a")
    assert 0 not in queue.poll().busy


def test_too_many_deaths_fail_the_stage_and_the_lane_goes_on() -> None:
    queue = StageQueue(plan(train("a", epochs=5), train("b")), budgets=retries(1))
    assert Lane(queue, group="1-").ask() == "a"
    assert Lane(queue, group="2-").ask() == "a"
    assert Lane(queue, group="3-").ask() == "b"
    (failed,) = kinds(queue, StageFailed)
    assert "died 2 times" in failed.reason
    assert "max_retries: 1" in failed.reason


def test_a_lost_lane_gives_its_stage_back() -> None:
    queue = StageQueue(plan(train("a")), num_lanes=2, budgets=retries(1))
    one, two = Lane(queue, 0), Lane(queue, 1)
    assert one.ask() == "a"
    assert two.ask() == "end"
    queue.lost(0, crash("node gone"))
    assert Lane(queue, 1, group="again").ask() == "a"
    queue.lost(1, crash("node gone too"))
    (failed,) = kinds(queue, StageFailed)
    assert "node gone too" in failed.reason


def test_without_lanes_everything_that_is_left_fails() -> None:
    queue = StageQueue(plan(train("a"), train("b", "a"), train("c")))
    queue.abandon("no worker starts")
    assert queue.poll().unsettled == 0


def test_every_worker_of_a_group_gets_the_same_turn() -> None:
    queue = StageQueue(plan(train("a"), measure("a"), train("b", "a")))
    queue.join(0, "g", 1, 2, "host:2")
    assert kinds(queue, LaneUp) == []
    queue.join(0, "g", 0, 2, "host:1")
    assert kinds(queue, LaneUp) == [LaneUp(0, ("host:1", "host:2"), ("", ""))]
    assert queue.ask(0, "g", 0) == queue.ask(0, "g", 0)
    assert queue.ask(0, "g", 1).kind == "wait", "rank 1 is ahead; rank 0 has not reported yet"
    queue.finish(0, "g", "a", {})
    assert queue.ask(0, "g", 1).stage.digest == "m-a"
    queue.finish(0, "g", "m-a", {})
    assert queue.ask(0, "g", 2).stage.digest == "b"
    assert queue.ask(0, "g", 1).stage.digest == "m-a", "a slow rank hears of a turn that is over"
    assert queue.fail(0, "g", 2, 1, "first") == 1
    assert queue.fail(0, "g", 2, 1, "again") == 1
    assert queue.fail(0, "g", 2, 0, "second") == 2
    assert [e.reason for e in kinds(queue, StageFailed)] == ["first"]


def test_stop_saves_and_ends() -> None:
    queue = StageQueue(plan(train("a"), train("b")))
    lane = Lane(queue)
    held = lane.ask()
    assert queue.beat(0, "g0") is False
    queue.stop()
    assert queue.beat(0, "g0") is True
    queue.interrupted(0, "g0", held)
    assert lane.ask() == "end"
    state = queue.poll()
    assert (state.unsettled, state.wanted, dict(state.busy)) == (2, 0, {})
    assert not any(isinstance(e, StageFailed) for e in state.events)


def test_deadline_stops_then_kills() -> None:
    clock = Clock()
    queue = StageQueue(plan(train("a"), train("b")), deadline_s=120.0, clock=clock)
    lane = Lane(queue)
    first = lane.ask()
    clock.now = 119
    assert queue.beat(0, "g0") is False
    clock.now = 121
    assert queue.beat(0, "g0") is True
    queue.interrupted(0, "g0", first)
    (failed,) = kinds(queue, StageFailed)
    assert "stage_deadline_minutes: 2" in failed.reason
    lane.ask()
    clock.now += 120 + DEADLINE_GRACE_S + 1
    state = queue.poll()
    assert state.stuck == ("worker-g0",)
    assert [e.stage for e in queue.poll().events if isinstance(e, StageFailed)] != [first]


def test_an_idle_lane_frees_its_resources_and_comes_back() -> None:
    clock = Clock()
    queue = StageQueue(plan(train("t"), train("a", "t"), train("b", "t")), num_lanes=2, clock=clock)
    one, two = Lane(queue, 0), Lane(queue, 1)
    one.ask()
    assert two.ask() == "wait"
    assert queue.poll().wanted == 1
    clock.now = IDLE_LANE_S + 1
    assert two.ask() == "end"
    one.finish("t")
    assert queue.poll().wanted == 2


@st.composite
def graphs(draw: st.DrawFn) -> Sequence[Stage]:
    """Random trees of train stages, some of them measured."""
    stages: list[Stage] = []
    for i in range(draw(st.integers(1, 8))):
        parents = draw(st.sets(st.integers(0, i - 1), max_size=2)) if i else set()
        stages.append(train(f"t{i}", *(f"t{p}" for p in sorted(parents)), epochs=draw(st.integers(0, 3))))
    return stages + [measure(s.digest) for s in stages if draw(st.booleans())]


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(1, 4), st.integers(0, 2), st.data())
def test_whatever_happens_every_stage_settles_once(
    stages: Sequence[Stage], num_lanes: int, max_retries: int, data: st.DataObject
) -> None:
    by_digest = plan(*stages)
    queue = StageQueue(by_digest, num_lanes=num_lanes, budgets=retries(max_retries))
    lanes = [Lane(queue, n) for n in range(num_lanes)]
    holds: dict[int, str] = {}
    finished: set[str] = set()
    events = []
    for life in range(1000):
        state = queue.poll()
        events += state.events
        if not state.unsettled:
            break
        number = data.draw(st.integers(0, num_lanes - 1))
        lane = lanes[number]
        if number not in holds:
            answer = lane.ask()
            if answer == "end":
                lanes[number] = Lane(queue, number, group=f"{life}-")
            elif answer != "wait":
                assert answer not in holds.values(), "handed out twice at once"
                assert answer not in finished, "handed out again"
                assert finished.issuperset(by_digest[answer].parents)
                holds[number] = answer
                if any(by_digest[d].kind == "measure" for d in holds.values()):
                    assert len(holds) == 1, "a measurement is alone"
            continue
        outcome = data.draw(st.sampled_from(["finish", "finish", "finish", "fail", "die", "lose"]))
        digest = holds.pop(number)
        if outcome == "finish":
            lane.finish(digest)
            finished.add(digest)
        elif outcome == "fail":
            lane.fail()
        elif outcome == "die":
            lanes[number] = Lane(queue, number, group=f"{life}-")
        else:
            queue.lost(number, crash())
            lanes[number] = Lane(queue, number, group=f"{life}-")
    else:
        pytest.fail("the queue does not settle")
    settled = [e.stage for e in events if isinstance(e, StageFinished | StageFailed | StageSkipped)]
    assert sorted(settled) == sorted(by_digest), "each stage settles exactly once"


def test_the_end_holds_for_every_worker_of_a_group() -> None:
    queue = StageQueue(plan(train("a"), train("b", "a")), num_lanes=2, budgets=retries(1))
    for rank in range(2):
        queue.join(0, "g0", rank, 2, f"host:{rank} cpu")
        queue.join(1, "g1", rank, 2, f"host:{rank} cpu")
    assert [queue.ask(0, "g0", 0).kind for _ in range(2)] == ["run", "run"]
    queue.finish(0, "g0", "a", {})
    assert [queue.ask(0, "g0", 1).kind for _ in range(2)] == ["run", "run"]
    assert queue.ask(1, "g1", 0).kind == "end", "what is left is held by the other lane"
    queue.lost(0, crash())
    assert queue.ask(1, "g1", 0).kind == "end", "alone, the second worker would wait for the first for ever"


def see(queue: StageQueue, **free: int) -> None:
    queue.see(Room(total=free, free=free))


def test_a_stage_whose_worker_died_is_tried_elsewhere_for_a_while() -> None:
    clock = Clock()
    queue = StageQueue(plan(train("a", epochs=9), train("b")), num_lanes=2, clock=clock)
    see(queue, one=1, two=1)
    bad = Lane(queue, 0, node="one")
    assert bad.ask() == "a"
    queue.lost(0, crash(), frozenset({0}))
    state = queue.poll()
    assert state.avoid == {"one"}
    assert [e.action for e in state.events if isinstance(e, StageRetried)] == ["retry elsewhere"]
    again = Lane(queue, 0, group="again", node="one")
    assert again.ask() == "b", "not what just died here"
    again.finish("b")
    assert again.ask() == "wait"
    clock.now = ELSEWHERE_S + 1
    assert again.ask() == "a", "elsewhere is a wish: no lane came up there"


def test_a_bad_node_is_excluded_and_said() -> None:
    queue = StageQueue(plan(*(train(name) for name in "abcd")), num_lanes=2)
    see(queue, bad=1, good=1)
    fine = Lane(queue, 1, node="good")
    fine.finish(fine.ask())
    for life in range(2):
        lane = Lane(queue, 0, group=f"{life}-", node="bad")
        lane.ask()
        queue.lost(0, crash(f"segmentation fault {life}"), frozenset({0}))
        taken = fine.ask()  # what died goes on elsewhere
        fine.finish(taken)
    state = queue.poll()
    assert state.excluded == {"bad"}
    assert [(e.node, e.reason) for e in state.events if isinstance(e, NodeExcluded)] == [
        ("bad", "segmentation fault 1")
    ]


def test_a_store_that_does_not_answer_is_asked_again_later() -> None:
    clock = Clock()
    queue = StageQueue(plan(train("a"), train("b")), budgets=retries(1), clock=clock)
    lane = Lane(queue)
    first = lane.ask()
    lane.fail("time-out", "store")
    second = lane.ask()
    assert {first, second} == {"a", "b"}, "other stages go on meanwhile"
    lane.finish(second)
    assert lane.ask() == "wait"
    clock.now = 16
    assert lane.ask() == first
    lane.fail("time-out", "store")
    (failed,) = kinds(queue, StageFailed)
    assert "the store failed it 2 times" in failed.reason


def test_progress_refills_the_budget() -> None:
    queue = StageQueue(plan(train("a")), budgets=retries(1))
    for life in range(5):
        lane = Lane(queue, group=f"{life}-")
        assert lane.ask() == "a"
        queue.beat(0, lane.group, [Progress("epoch", "a", step=10 * (life + 1))])
        queue.lost(0, crash())
    for life in range(5, 7):
        lane = Lane(queue, group=f"{life}-")
        assert (lane.ask() == "a") == (life == 5), "two deaths without a checkpoint in between are too many"
        queue.lost(0, crash())


def test_who_is_told_to_end_saves_and_goes_on_elsewhere() -> None:
    queue = StageQueue(plan(train("a", epochs=9), train("b")), num_lanes=2, budgets=Budgets(0, 1))
    see(queue, one=1, two=1)
    lane, other = Lane(queue, 0, node="one"), Lane(queue, 1, node="two")
    assert lane.ask() == "a"
    assert other.ask() == "b"
    assert queue.beat(0, lane.group) is False
    queue.leave(0, lane.group, 0)
    assert queue.beat(0, lane.group) is True
    assert queue.beat(1, other.group) is False
    queue.interrupted(0, lane.group, "a")
    assert lane.ask() == "end", "the machine is going"
    (again,) = kinds(queue, StageRetried)
    assert (again.kind, again.action) == ("preempted", "retry elsewhere")
    other.finish("b")
    assert other.ask() == "a"
    queue.see(Room({"two": 1}, {"two": 0}), draining=["two"])
    assert queue.beat(1, other.group) is True
    queue.lost(1, crash("the node went before all was saved"))
    (failed,) = kinds(queue, StageFailed)
    assert "max_preemptions: 1" in failed.reason, "a death after the notice is part of it, and no crash"


def test_lanes_wait_for_stages_that_may_be_added() -> None:
    queue = StageQueue(plan(train("a")), open_ended=True)
    lane = Lane(queue)
    assert lane.ask() == "a"
    lane.finish("a")
    assert lane.ask() == "wait", "a search may propose more"
    queue.add(plan(train("teacher", "unknown"), train("b", "teacher"), train("a")), done=["teacher"])
    assert lane.ask() == "b", "what a finished stage read need not be known"
    lane.finish("b")
    queue.seal()
    assert lane.ask() == "end"
    assert queue.poll().unsettled == 0


def test_what_is_given_up_ends_and_takes_nothing_with_it() -> None:
    queue = StageQueue(plan(train("a"), train("b"), train("c", "a"), measure("c")), open_ended=True)
    lane = Lane(queue)
    held = lane.ask()
    assert held == "a"
    queue.give_up({"a": "too slow", "c": "too slow", "m-c": "too slow", "elsewhere": "nobody knows it"})
    assert queue.beat(0, lane.group), "its work is asked for"
    state = queue.poll()
    assert [(e.stage, e.reason) for e in state.events if isinstance(e, StageStopped)] == [
        ("a", "too slow"),
        ("c", "too slow"),
        ("m-c", "too slow"),
    ]
    assert state.unsettled == 1
    queue.interrupted(0, lane.group, "a")
    assert lane.ask() == "b"
    assert not queue.beat(0, lane.group), "the next stage is not asked to stop"
    lane.finish("b")
    queue.seal()
    assert lane.ask() == "end"
    assert not kinds(queue, StageFailed)


def test_what_was_given_up_can_be_wanted_again() -> None:
    queue = StageQueue(plan(train("a"), train("b", "a")), open_ended=True)
    lane = Lane(queue)
    assert lane.ask() == "a"
    queue.give_up({"a": "", "b": ""})
    queue.add(plan(train("a"), train("c", "a")))
    queue.interrupted(0, lane.group, "a")
    assert lane.ask() == "a"
    lane.finish("a")
    assert lane.ask() == "c"


def test_a_stage_that_is_finished_after_all_counts() -> None:
    queue = StageQueue(plan(train("a"), measure("a")), open_ended=True)
    lane = Lane(queue)
    assert lane.ask() == "a"
    queue.give_up({"a": ""})
    lane.finish("a")
    assert lane.ask() == "m-a"


def test_a_dead_worker_does_not_bring_back_what_was_given_up() -> None:
    queue = StageQueue(plan(train("a"), train("b")), open_ended=True)
    lane = Lane(queue)
    assert lane.ask() == "a"
    queue.give_up({"a": ""})
    assert Lane(queue, group="next").ask() == "b"


def test_stages_added_below_a_failed_one_are_skipped() -> None:
    queue = StageQueue(plan(train("teacher")), open_ended=True)
    lane = Lane(queue)
    assert lane.ask() == "teacher"
    lane.fail("no images")
    queue.add(plan(train("teacher"), train("a", "teacher"), measure("a")))
    assert [(e.stage, e.because_of) for e in kinds(queue, StageSkipped)] == [("a", "teacher"), ("m-a", "teacher")]
    assert queue.poll().unsettled == 0


OF_24, OF_25 = (1, 2, 3, 4, 6, 8), (1, 5)
SHARES = Shares(lambda stage: OF_25 if stage.label.startswith("odd") else OF_24)


def test_a_lane_takes_what_its_workers_share_and_then_makes_way_for_another_size() -> None:
    queue = StageQueue(plan(train("odd", epochs=9), train("a"), train("b"), measure("a")), shares=SHARES)
    assert queue.poll().sizes == (OF_25, OF_24), "what is more urgent decides how a lane is started"
    four = Lane(queue, size=4)
    assert queue.poll().sizes[0] == OF_25, "which this lane cannot train"
    for expected in ("a", "m-a", "b"):
        assert four.ask() == expected
        assert queue.poll().sizes_of == {0: () if expected == "m-a" else OF_24}
        four.finish(expected)
    assert four.ask() == "end"
    queue.left(0)
    assert Lane(queue, group="h", size=5).ask() == "odd"


def test_a_lane_that_suits_nobody_waits_for_one_that_does_and_for_measurements() -> None:
    queue = StageQueue(plan(train("odd a"), train("odd b"), train("c"), measure("c")), num_lanes=2, shares=SHARES)
    five, four = Lane(queue, 0, size=5), Lane(queue, 1, size=4)
    assert (five.ask(), four.ask()) == ("odd a", "c")
    four.finish("c")
    assert four.ask() == "wait", "the other lane can train what is left"
    five.finish("odd a")
    assert five.ask() == "odd b"
    five.finish("odd b")
    assert four.ask() == "m-c"
    queue.add(plan(train("odd d")))
    queue.lost(0, crash())
    three = Lane(queue, 0, group="h", size=3)
    assert three.ask() == "wait", "nothing is started beside a measurement"
    four.finish("m-c")
    assert three.ask() == "end"


def test_a_stage_that_is_refused_fails_and_takes_only_its_own_with_it() -> None:
    queue = StageQueue(plan(train("a"), measure("a"), train("b")), (), {"a": "no room"}, open_ended=True)
    assert queue.poll().events == (StageFailed("a", "no room"), StageSkipped("m-a", "a"))
    queue.add(plan(train("c")), (), {"a": "no room", "c": "odd"})
    assert queue.poll().events == (StageFailed("c", "odd"),), "once"
    assert Lane(queue).ask() == "b"
