"""The queue beside other runs: what they hold is waited for, what they finish is taken, what they take over stops."""

from __future__ import annotations

from typing import Literal

from cluster.leases import Change, Elsewhere
from orchestrator.execution.events import StageElsewhere, StageFound, StoreSilent
from orchestrator.execution.failures import Budgets, Failure
from orchestrator.execution.queue import StageQueue
from orchestrator.execution.rivals import STORE_PAUSE_S, artefact
from tests.execution.plans import digest, plan, train

A, B, CHILD = "steps=1", "steps=2", "steps=3"


class Board:
    """Leases as the other runs want them."""

    def __init__(self) -> None:
        self.answers: dict[str, Elsewhere | Literal["finished"] | OSError] = {}
        self.mine: set[str] = set()
        self.watched: set[str] = set()
        self.gone: list[tuple[str, bool]] = []
        self.news: list[Change] = []
        self.closed = False

    def take(self, name: str) -> Elsewhere | Literal["taken", "finished"]:
        answer = self.answers.get(name)
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            self.mine.add(name)
        return answer or "taken"

    def give_back(self, name: str, *, finished: bool) -> None:
        if name in self.mine:
            self.mine.discard(name)
            self.gone.append((name, finished))

    def watch(self, name: str) -> None:
        self.watched.add(name)

    def changes(self) -> list[Change]:
        found, self.news = self.news, []
        return found

    def close(self) -> None:
        self.closed = True


class Case:
    def __init__(self, *stages: object, lanes: int = 1) -> None:
        self.now, self.board = 0.0, Board()
        made = plan(*stages)  # type: ignore[arg-type]
        self.queue = StageQueue(
            made.stages, num_lanes=lanes, budgets=Budgets(1), leases=self.board, clock=lambda: self.now
        )
        for lane in range(lanes):
            self.queue.join(lane, f"g{lane}", 0, 1, "worker")

    def ask(self, turn: int, lane: int = 0) -> str:
        given = self.queue.ask(lane, f"g{lane}", turn)
        return given.kind if given.stage is None else given.stage.label


def name(label: str) -> str:
    return artefact(digest(label))


def test_a_stage_is_computed_with_a_lease_and_finished_without() -> None:
    case = Case(train(A))
    assert case.ask(0) == A
    assert case.board.mine == {name(A)}
    case.queue.finish(0, "g0", digest(A), {})
    assert case.board.gone == [(name(A), True)]
    case.queue.close()
    assert case.board.closed


def test_what_another_run_holds_is_waited_for() -> None:
    case = Case(train(A), train(B), train(CHILD, A))
    case.board.answers[name(A)] = Elsewhere("far", 12.0)
    assert case.ask(0) == B, "there is other work"
    case.queue.finish(0, "g0", digest(B), {})
    assert case.ask(1) == "wait"
    state = case.queue.poll()
    assert StageElsewhere(digest(A), "far", 12.0) in state.events
    assert state.unsettled == 2
    assert state.wanted == 0
    case.board.news = [Change(name(A), "finished")]
    state = case.queue.poll()
    assert state.events == (StageFound(digest(A)),)
    assert case.ask(1) == CHILD, "its child can run on what the other run made"


def test_what_another_run_gives_up_is_computed_here() -> None:
    case = Case(train(A))
    case.board.answers[name(A)] = Elsewhere("far", 12.0)
    assert case.ask(0) == "wait"
    del case.board.answers[name(A)]
    assert case.ask(0) == "wait", "not asked for again before something is known"
    case.board.news = [Change(name(A), "free")]
    case.queue.poll()
    assert case.ask(0) == A


def test_what_is_finished_when_asked_for_counts() -> None:
    case = Case(train(A), train(CHILD, A))
    case.board.answers[name(A)] = "finished"
    assert case.ask(0) == "wait"
    assert case.ask(0) == CHILD
    assert StageFound(digest(A)) in case.queue.poll().events


def test_a_stage_that_another_run_took_over_is_stopped() -> None:
    case = Case(train(A))
    case.ask(0)
    assert not case.queue.beat(0, "g0")
    case.board.news, case.board.mine = [Change(name(A), "lost")], set()
    case.queue.poll()
    assert case.queue.beat(0, "g0"), "it shall save and stop"
    case.queue.interrupted(0, "g0", digest(A))
    assert case.board.watched == {name(A)}
    assert case.board.gone == [], "it is not ours to give back"
    assert case.ask(1) == "wait"
    case.board.news = [Change(name(A), "finished")]
    assert case.queue.poll().unsettled == 0


def test_a_late_finish_still_counts() -> None:
    case = Case(train(A))
    case.ask(0)
    case.board.news = [Change(name(A), "lost")]
    case.queue.poll()
    case.queue.finish(0, "g0", digest(A), {})
    assert case.queue.poll().unsettled == 0


def test_leases_are_given_back_however_a_stage_ends() -> None:
    failed = Case(train(A))
    failed.ask(0)
    failed.queue.fail(0, "g0", 0, 0, "no images")
    assert failed.board.gone == [(name(A), False)]

    stopped = Case(train(A))
    stopped.ask(0)
    stopped.queue.stop()
    stopped.queue.interrupted(0, "g0", digest(A))
    assert stopped.board.gone == [(name(A), False)]

    lost = Case(train(A))
    lost.ask(0)
    lost.queue.lost(0, Failure("node lost", "the node died"))
    assert lost.board.gone == [(name(A), False)]


def test_after_a_death_whoever_asks_first_goes_on() -> None:
    case = Case(train(A))
    case.ask(0)
    case.queue.join(0, "again", 0, 1, "worker")
    assert case.board.gone == [(name(A), False)]
    assert case.queue.ask(0, "again", 0).stage is not None
    assert case.board.mine == {name(A)}


def test_a_death_after_another_run_took_over_is_none_of_our_failures() -> None:
    case = Case(train(A))
    case.ask(0)
    case.board.news, case.board.mine = [Change(name(A), "lost")], set()
    case.queue.poll()
    case.queue.lost(0, Failure("user error", "cut off"))
    assert case.queue.poll().unsettled == 1
    assert case.board.watched == {name(A)}


def test_a_store_that_is_away_is_asked_again() -> None:
    case = Case(train(A))
    case.board.answers[name(A)] = OSError("no route")
    assert case.ask(0) == "wait"
    assert case.queue.poll().events[-1] == StoreSilent("no route")
    del case.board.answers[name(A)]
    assert case.ask(0) == "wait"
    case.now += STORE_PAUSE_S
    assert case.ask(0) == A
