"""The policy: a table of what follows from what, and what must hold whatever happened before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution.failures import (
    RETRIED,
    Budgets,
    Decision,
    Failure,
    Incident,
    Kind,
    Room,
    bad_nodes,
    decide,
)

KINDS: tuple[Kind, ...] = ("preempted", "node lost", "crash", "store", "out of memory", "user error", "deadline")
TWO = Room(total={"A": 1, "B": 1}, free={"A": 1, "B": 1})
ONE = Room(total={"A": 1}, free={"A": 1})
FULL = Room(total={"A": 1, "B": 1}, free={"A": 1, "B": 0})
"""The other node is taken by another lane."""


def died(stage: str, *nodes: str) -> Incident:
    return Incident(stage, "crash", frozenset(nodes))


def did(stage: str, what: str, *nodes: str) -> Incident:
    return Incident(stage, what, frozenset(nodes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "node", "history", "budgets", "room", "action"),
    [
        ("user error", "A", [], Budgets(), TWO, "fail"),
        ("out of memory", "A", [], Budgets(), TWO, "fail"),
        ("deadline", "A", [], Budgets(), TWO, "fail"),
        ("crash", "A", [], Budgets(), TWO, "retry elsewhere"),
        ("crash", "A", [], Budgets(), ONE, "retry"),
        ("crash", "A", [], Budgets(), FULL, "retry"),
        ("crash", "", [], Budgets(), TWO, "retry"),
        ("crash", "A", [], Budgets(max_retries=0), TWO, "fail"),
        ("crash", "A", [died("s", "A")], Budgets(max_retries=1), TWO, "fail"),
        ("crash", "A", [died("other", "A")], Budgets(max_retries=1), TWO, "retry elsewhere"),
        ("crash", "A", [died("s", "A"), did("s", "progressed")], Budgets(max_retries=1), TWO, "retry elsewhere"),
        ("crash", "B", [died("s", "A")], Budgets(), TWO, "retry elsewhere"),
        ("node lost", "C", [], Budgets(), TWO, "retry elsewhere"),
        ("node lost", "C", [died("s", "A")], Budgets(max_retries=1), TWO, "fail"),
        ("store", "A", [], Budgets(), TWO, "retry"),
        ("store", "A", [died("s", "A")], Budgets(max_retries=1), TWO, "fail"),
        ("preempted", "A", [], Budgets(max_retries=0), TWO, "retry elsewhere"),
        ("preempted", "A", [did("s", "preempted")] * 99, Budgets(max_retries=0), TWO, "retry elsewhere"),
        ("preempted", "A", [did("s", "preempted")], Budgets(max_preemptions=1), TWO, "fail"),
        ("preempted", "A", [died("s", "A")] * 3, Budgets(max_retries=3), TWO, "retry elsewhere"),
        ("crash", "A", [did("s", "preempted", "B")] * 9, Budgets(max_retries=1), TWO, "retry elsewhere"),
    ],
)
def test_what_follows(kind: Kind, node: str, history: list, budgets: Budgets, room: Room, action: str) -> None:
    failure = Failure(kind, "the cause", frozenset({node} if node else ()))
    decision = decide("s", failure, history, budgets, room)
    assert decision.action == action
    assert "the cause" in decision.reason


@pytest.mark.parametrize(
    ("history", "room", "bad"),
    [
        ([], TWO, ""),
        ([died("s", "A"), died("t", "A")], TWO, ""),  # nobody does well
        ([did("x", "finished", "B"), died("s", "A")], TWO, ""),  # once
        ([did("x", "finished", "B"), died("s", "A"), died("t", "A")], TWO, "A"),
        ([did("x", "finished", "B"), died("s", "A"), died("s", "A")], TWO, "A"),
        ([did("x", "finished", "B"), died("s", "A"), died("s", "A"), died("s", "B")], TWO, ""),  # it is the stage
        ([did("x", "finished", "B"), died("s", "A"), did("y", "finished", "A"), died("t", "A")], TWO, ""),
        ([did("x", "finished", "B"), died("s", "A"), did("y", "progressed", "A"), died("t", "A")], TWO, "A"),
        ([did("x", "finished", "B"), died("s", "A"), died("t", "A")], ONE, ""),  # the last node
        ([did("x", "finished", "B"), did("s", "preempted", "A"), did("t", "preempted", "A")], TWO, ""),
        ([did("x", "finished", "B"), died("s", "A", "B"), died("t", "A", "B")], TWO, ""),  # unknown whose fault
    ],
)
def test_bad_nodes(history: list, room: Room, bad: str) -> None:
    assert bad_nodes(history, room) == frozenset(bad)


def test_pauses_grow_and_end() -> None:
    history: list[Incident] = []
    pauses = []
    for _ in range(8):
        pauses.append(decide("s", Failure("store", "time-out"), history, Budgets(max_retries=99), ONE).pause_s)
        history.append(did("s", "store"))
    assert pauses == [15, 30, 60, 120, 240, 480, 600, 600]


NODES = "ABC"
incidents = st.builds(
    Incident,
    st.sampled_from("st"),
    st.sampled_from([*KINDS, "progressed", "finished"]),
    st.frozensets(st.sampled_from(NODES), max_size=2),
)
rooms = st.dictionaries(st.sampled_from(NODES), st.tuples(st.integers(0, 2), st.integers(0, 2))).map(
    lambda found: Room({n: max(a, b) for n, (a, b) in found.items()}, {n: min(a, b) for n, (a, b) in found.items()})
)
budgets = st.builds(Budgets, st.integers(0, 3), st.none() | st.integers(0, 3))
failures = st.builds(Failure, st.sampled_from(KINDS), st.just("why"), st.frozensets(st.sampled_from(NODES), max_size=2))


@given(failures, st.lists(incidents, max_size=12), budgets, rooms)
def test_whatever_happened_before(failure: Failure, history: list[Incident], budgets: Budgets, room: Room) -> None:
    decision = decide("s", failure, history, budgets, room)
    assert "why" in decision.reason, "no decision without its reason"
    if decision.exclude:
        assert room.usable_without(decision.exclude), "the last nodes are never excluded"
    if decision.action == "retry elsewhere":
        assert decision.avoid
        assert room.lane_fits_without(decision.avoid | decision.exclude), "elsewhere exists"
    else:
        assert not decision.avoid
    if failure.kind not in RETRIED | {"preempted"}:
        assert decision.action == "fail"
    others = [i for i in history if i.stage != "s"]
    alone = decide("s", failure, [i for i in history if i.stage == "s"], budgets, room)
    assert (alone.action == "fail") == (decision.action == "fail"), f"{others} use up no budget of this stage"


@given(st.sampled_from(sorted(RETRIED)), budgets, rooms, st.data())
def test_no_stage_is_tried_for_ever_without_progress(
    kind: Kind, budgets: Budgets, room: Room, data: st.DataObject
) -> None:
    history: list[Incident] = []
    decisions: list[Decision] = []
    for _ in range(budgets.max_retries + 1):
        nodes = data.draw(st.frozensets(st.sampled_from(NODES), max_size=2))
        decisions.append(decide("s", Failure(kind, "why", nodes), history, budgets, room))
        history.append(Incident("s", kind, nodes))
    assert [d.action == "fail" for d in decisions] == [False] * budgets.max_retries + [True]
