"""What follows from a failure: a pure policy that returns its decision with the reason.

| what happened | its budget | decision |
|---|---|---|
| the node was taken away with notice, or the worker was told to end | `resources.max_preemptions` | retry elsewhere |
| the node died | `resources.max_retries`, in a row without progress | retry elsewhere |
| a worker died | the same | retry, elsewhere if there is room; a bad node is excluded |
| the store did not answer | the same | retry after a pause |
| memory of host or GPU did not suffice | none: it would not suffice again | fail |
| an error of the stage itself: data, options, code | none: it would happen again | fail |
| past its deadline | none | fail |
| its lane is to be had with more workers | none | retry |

A stage that fails takes with it what reads it, and nothing else. Who acts on decisions is the queue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from specs.words import counted

Kind = Literal["preempted", "node lost", "crash", "store", "out of memory", "user error", "deadline", "moved"]
DEATHS: Set[Kind] = frozenset({"node lost", "crash"})
RETRIED: Set[Kind] = DEATHS | {"store"}
"""What shares the budget `max_retries`."""
BAD_NODE_DEATHS = 2
"""Deaths on a node, since it last finished a stage, that make it a bad one while others do well."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0
"""Before a stage whose store did not answer is begun again; each time twice as long."""


@dataclass(frozen=True)
class Failure:
    """Why a stage could not go on."""

    kind: Kind
    reason: str
    """For people."""
    nodes: frozenset[str] = frozenset()
    """Ids of the nodes on which it happened, as far as that is known."""


@dataclass(frozen=True)
class Incident:
    """One line of a run's history."""

    stage: str
    """Digest."""
    what: Kind | Literal["progressed", "finished"]
    """`progressed`: a checkpoint further than any before is committed."""
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Budgets:
    """How often is too often; see `specs.resources`."""

    max_retries: int = 3
    max_preemptions: int | None = None


@dataclass(frozen=True)
class Room:
    """Where workers fit."""

    total: Mapping[str, int] = field(default_factory=dict)
    """Node id → workers that fit on the node, if nothing else ran there."""
    free: Mapping[str, int] = field(default_factory=dict)
    """The same beside the lanes that run."""
    workers: int = 1
    """That a lane needs at least."""

    def lane_fits_without(self, nodes: Set[str]) -> bool:
        """Whether one more lane fits on the others."""
        return sum(free for node, free in self.free.items() if node not in nodes) >= self.workers

    def usable_without(self, nodes: Set[str]) -> bool:
        """Whether the cluster without these nodes could hold a lane at all."""
        return sum(total for node, total in self.total.items() if node not in nodes) >= self.workers


@dataclass(frozen=True)
class Decision:
    """What is to be done about a failure."""

    action: Literal["retry", "retry elsewhere", "fail"]
    reason: str
    """For people."""
    avoid: frozenset[str] = frozenset()
    """Nodes on which this stage shall not be tried again for now."""
    exclude: frozenset[str] = frozenset()
    """All nodes on which nothing shall be started any more."""
    pause_s: float = 0.0
    """Before the stage is tried again."""


def decide(stage: str, failure: Failure, history: Sequence[Incident], budgets: Budgets, room: Room) -> Decision:
    """Decide about a stage that could not go on.

    Args:
        stage: its digest.
        failure: what happened now.
        history: what happened before in this run, to all stages, oldest first.
        budgets: how often is too often.
        room: where a lane could go.
    """
    known = [*history, Incident(stage, failure.kind, failure.nodes)]
    exclude = bad_nodes(known, room)
    if failure.kind == "preempted":
        times = sum(i.stage == stage and i.what == "preempted" for i in known)
        if budgets.max_preemptions is not None and times > budgets.max_preemptions:
            limit = f"`resources.max_preemptions: {budgets.max_preemptions}`"
            reason = f"its nodes were taken away {counted(times, 'time')} ({limit}); the last time: {failure.reason}"
            return Decision("fail", reason, exclude=exclude)
    elif failure.kind in RETRIED:
        times = sum(i.what in RETRIED for i in _since_progress(stage, known))
        if times > budgets.max_retries:
            return Decision("fail", _given_up(failure, times, budgets), exclude=exclude)
        if failure.kind == "store":
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (times - 1))
            return Decision("retry", f"{failure.reason}; next try in {pause_s:g} s", exclude=exclude, pause_s=pause_s)
    elif failure.kind == "moved":
        return Decision("retry", failure.reason, exclude=exclude)
    else:
        return Decision("fail", failure.reason, exclude=exclude)
    avoid = _died_on(stage, known)
    if not room.lane_fits_without(avoid | exclude):
        avoid = failure.nodes  # not where it died last, at least
    if avoid and room.lane_fits_without(avoid | exclude):
        return Decision("retry elsewhere", failure.reason, avoid, exclude)
    return Decision("retry", failure.reason, exclude=exclude)


def bad_nodes(history: Sequence[Incident], room: Room) -> frozenset[str]:
    """Nodes to be excluded: workers die on them repeatedly while others do well.

    A death speaks against a node only until the node finishes a stage again, and only if the same stage did not die on
    other nodes too: then it is the stage. No node is excluded that the last lane needs.
    """
    died_on: dict[str, set[str]] = defaultdict(set)
    for incident in history:
        if incident.what in DEATHS:
            died_on[incident.stage] |= incident.nodes
    deaths: dict[str, int] = defaultdict(int)
    does_well: set[str] = set()
    for incident in history:
        if incident.what in ("progressed", "finished"):
            does_well |= incident.nodes
            if incident.what == "finished":
                for node in incident.nodes:
                    deaths.pop(node, None)
        elif incident.what in DEATHS:
            does_well -= incident.nodes
            for node in incident.nodes:
                deaths[node] += len(died_on[incident.stage]) == 1
    bad: set[str] = set()
    for node, times in sorted(deaths.items(), key=lambda item: (-item[1], item[0])):
        if times >= BAD_NODE_DEATHS and does_well - bad - {node} and room.usable_without(bad | {node}):
            bad.add(node)
    return frozenset(bad)


def _since_progress(stage: str, history: Sequence[Incident]) -> list[Incident]:
    own = [incident for incident in history if incident.stage == stage]
    last = max((i for i, incident in enumerate(own) if incident.what == "progressed"), default=-1)
    return own[last + 1 :]


def _died_on(stage: str, history: Sequence[Incident]) -> frozenset[str]:
    """Nodes that failed this stage since it last made progress."""
    lost: Set[Kind] = DEATHS | {"preempted"}
    return frozenset(node for i in _since_progress(stage, history) if i.what in lost for node in i.nodes)


def _given_up(failure: Failure, times: int, budgets: Budgets) -> str:
    what = "the store failed it" if failure.kind == "store" else "its workers died"
    return (
        f"{what} {counted(times, 'time')} without progress in between "
        f"(`resources.max_retries: {budgets.max_retries}`); the last time: {failure.reason}"
    )
