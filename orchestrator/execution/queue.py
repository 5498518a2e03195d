"""Which lane runs which stage next. Free of Ray, so that it can be tested as plain code; the run makes it an actor.

Groups ask for work turn by turn; every worker of a group asks for the same turn and gets the same answer, so they need
no communication of their own. What follows from a failure, `failures` decides; how stages stand, `board` knows; what
other runs on the same store are at, `rivals`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from orchestrator.execution.board import Board
from orchestrator.execution.events import (
    Event,
    LaneUp,
    NodeExcluded,
    StageFinished,
    StageFound,
    StageRetried,
    StageStarted,
)
from orchestrator.execution.failures import DEATHS, Budgets, Decision, Failure, Incident, Kind, Room, decide
from orchestrator.execution.place import END, WAIT, Assignment, Place, Worker
from orchestrator.execution.rivals import Rivals, StageLeases
from orchestrator.execution.shares import Shares
from orchestrator.execution.state import QueueState
from orchestrator.planning.plan import Stage
from orchestrator.training.interface import Progress

IDLE_LANE_S = 120.0
"""A lane that finds no work for so long, while others are busy, ends and frees its resources."""
DEADLINE_GRACE_S, SHORTEST_GRACE_S = 60.0, 10.0
"""Time between asking an overdue stage to stop and killing its workers; as long as the deadline itself in between."""
ELSEWHERE_S = 180.0
"""How long a stage that is to be tried elsewhere waits for a lane there; then any lane may take it."""


class StageQueue:
    """Hands ready stages to lanes.

    A stage is ready once its parents are finished. A measure stage besides needs the machine for itself: it is
    handed out when no other lane holds a stage, and while it runs nothing else is. A failed stage takes its
    descendants with it, and nothing else.

    A stage is handed out only with a lease, so that of several runs on one store only one computes it. What another run
    holds is waited for, and counts as finished once it is there. A stage that another run took over is stopped.

    A lane is handed only stages whose batches its workers can share. One that finds none of those, while no lane that
    is up can train what waits, ends, to be started with another number of workers.

    Args:
        stages: digest → stage, parents first.
        done: digests of finished stages.
        refused: digest → why the stage cannot run at all; it fails at once.
        shares: on how many workers each stage can be trained.
        num_lanes: lanes that will ask.
        budgets: how often a stage is begun again.
        deadline_s: wall-clock limit of a stage over all its attempts in this run, in seconds.
        leases: who may compute what; `None` = this is the only run there can be.
        open_ended: whether stages may be added; lanes then wait for them until `seal`.
        clock: seconds that no change of the date moves; a parameter for tests.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        done: Collection[str] = (),
        refused: Mapping[str, str] = MappingProxyType({}),
        *,
        shares: Shares | None = None,
        num_lanes: int = 1,
        budgets: Budgets = Budgets(),  # noqa: B008 - frozen
        deadline_s: float | None = None,
        leases: StageLeases | None = None,
        open_ended: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = Board(stages, done)
        self._open_ended = open_ended
        self._attempts: Counter[str] = Counter()
        self._started_at: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        """Stage → furthest step that is known to be committed."""
        self._history: list[Incident] = []
        self._decisions: dict[str, tuple[Decision, float]] = {}
        """Stage → the last decision about it, and when that was."""
        self._excluded: frozenset[str] = frozenset()
        self._lanes = {lane: Place() for lane in range(num_lanes)}
        self._failed_ranks: dict[tuple[int, str, int], set[int]] = {}
        self._budgets, self._room = budgets, Room()
        self._deadline_s = deadline_s
        self._grace_s = min(DEADLINE_GRACE_S, max(SHORTEST_GRACE_S, deadline_s or 0.0))
        self._clock = clock
        self._stopping = False
        self._shares = shares or Shares()
        self._events: list[Event] = []
        self._rivals = Rivals(leases, self._learn, clock)
        self._refuse(refused)

    # What workers call.

    def join(
        self, lane: int, group: str, rank: int, world_size: int, worker: str, handle: Any = None, node: str = ""
    ) -> None:
        """A worker of a group is ready. `handle` is what `QueueState.stuck` gives back, `node` its node's id."""
        place = self._lanes[lane]
        if group in place.retired:
            return
        if place.group != group:
            self._take_back(place, Failure("crash", "see the worker's log in the Ray dashboard"))
            place.group, place.size = group, world_size
        place.workers[rank] = Worker(worker, handle, node)
        if len(place.workers) == world_size:
            by_rank = [place.workers[r] for r in sorted(place.workers)]
            self._events.append(LaneUp(lane, tuple(w.name for w in by_rank), tuple(w.node for w in by_rank)))

    def ask(self, lane: int, group: str, turn: int) -> Assignment:
        """What this group does in this turn; the first worker that asks decides it for all."""
        place = self._lanes[lane]
        if place.group != group:
            return END
        if turn < len(place.turns):
            return place.turns[turn]
        assert turn == len(place.turns), f"turn {turn} asked for before turn {len(place.turns)}"
        if place.stage is not None:  # another worker of the group is still at the turn before
            return WAIT
        if self._stopping or place.leaving is not None:
            return place.turn(END)
        digest = self._choose(lane)
        return self._idle(place) if digest is None else self._assign(lane, digest)

    def beat(self, lane: int, group: str, progress: Collection[Progress] = ()) -> bool:
        """Takes progress; says whether the group shall save its work and stop."""
        place = self._lanes[lane]
        if place.group != group:
            return True
        for said in progress:
            # At the end of an epoch its checkpoint is committed.
            if said.kind in ("epoch", "resumed") and said.step > self._steps.get(said.stage, 0):
                self._steps[said.stage] = said.step
                nodes = place.nodes() if said.kind == "epoch" else frozenset()
                self._history.append(Incident(said.stage, "progressed", nodes))
        self._events.extend(progress)
        if self._stopping or place.leaving is not None or place.stage is None:
            return self._stopping or place.leaving is not None
        unwanted = self._board.given_up(place.stage) or self._rivals.took_over(place.stage)
        return unwanted or self._overdue_s(place.stage) > 0

    def finish(self, lane: int, group: str, digest: str, result: dict[str, Any]) -> None:
        """The stage's artefact is committed."""
        place = self._lanes[lane]
        if place.group != group or place.stage != digest:
            return
        place.stage = None
        self._rivals.let_go(digest, finished=True)
        self._board.finish(digest)
        self._history.append(Incident(digest, "finished", place.nodes()))
        self._events.append(StageFinished(digest, lane, self._clock() - self._started_at[digest], result))

    def fail(self, lane: int, group: str, turn: int, rank: int, reason: str, kind: Kind = "user error") -> int:
        """A worker gives the stage of a turn up.

        Returns:
            How many workers of the group have given up this turn.
        """
        place = self._lanes[lane]
        ranks = self._failed_ranks.setdefault((lane, group, turn), set())
        ranks.add(rank)
        if place.group == group and place.stage is not None and turn == len(place.turns) - 1:
            digest, place.stage = place.stage, None
            self._decide(digest, Failure(kind, reason, place.nodes(frozenset({rank}))))
        return len(ranks)

    def interrupted(self, lane: int, group: str, digest: str) -> None:
        """The stage saved its progress and returned, as `beat` asked."""
        place = self._lanes[lane]
        if place.group != group or place.stage != digest:
            return
        place.stage = None
        if self._overdue_s(digest) > 0:
            self._decide(digest, Failure("deadline", self._past_deadline()))
        elif place.leaving is not None and not self._stopping:
            self._decide(digest, place.leaving)
        else:
            self._rivals.let_go(digest)

    def leave(self, lane: int, group: str, rank: int) -> None:
        """A worker was told to end: its group saves its work and makes room."""
        place = self._lanes[lane]
        if place.group == group and place.leaving is None:
            place.leaving = Failure("preempted", "a worker was told to end (SIGTERM)", place.nodes(frozenset({rank})))

    # What the driver calls.

    def add(
        self,
        stages: Mapping[str, Stage],
        done: Collection[str] = (),
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """More stages; see `Board.add`. Those that are refused (digest → why) fail at once."""
        self._events += self._board.add(stages, done)
        self._refuse(refused)

    def give_up(self, reasons: Mapping[str, str]) -> None:
        """Nobody needs these stages (digest → why) any more; one that runs saves its progress and ends."""
        self._events += self._board.give_up(reasons)

    def seal(self) -> None:
        """No stages will be added any more."""
        self._open_ended = False

    def stop(self) -> None:
        """Hand out nothing more, and ask everybody to save and return."""
        self._stopping = True

    def lost(self, lane: int, failure: Failure, ranks: frozenset[int] | None = None) -> None:
        """A lane ended with an error, at the hands of some of its workers, if that is known."""
        place = self._lanes[lane]
        nodes = place.nodes(ranks) if ranks is not None else place.nodes()
        known = failure.nodes or (nodes if ranks is not None or len(nodes) == 1 else frozenset())
        told = place.leaving is not None and place.leaving.kind == "preempted"
        if place.leaving is not None and told and failure.kind in DEATHS:  # its time ran out before all was saved
            failure, known = place.leaving, place.leaving.nodes
        self._take_back(place, Failure(failure.kind, failure.reason, known))

    def left(self, lane: int) -> None:
        """A lane ended in peace."""
        self._take_back(self._lanes[lane], Failure("crash", "its lane ended"))

    def abandon(self, reason: str) -> None:
        """No lane can be had: everything that is left fails."""
        for digest in self._board.ready():
            self._events += self._board.fail(digest, reason)

    def close(self) -> None:
        """No lane works for this run any more: other runs may go on with what it did not finish."""
        self._rivals.close()

    def move(self, lane: int, reason: str) -> None:
        """Let a lane save its work and end, to be had anew."""
        place = self._lanes[lane]
        if place.leaving is None:
            place.leaving = Failure("moved", reason)

    def see(self, room: Room, draining: Collection[str] = ()) -> None:
        """Where lanes could go now, beside those that run, and which nodes are about to be taken away. Whoever works on
        one of those saves his work at once and goes on elsewhere."""
        self._room = room
        for place in self._lanes.values():
            if place.leaving is None and (going := place.nodes() & set(draining)):
                place.leaving = Failure("preempted", "its node is being taken away", going)

    def poll(self) -> QueueState:
        """What happened since the last call, and how things stand."""
        self._rivals.hear({place.stage for place in self._lanes.values() if place.stage is not None})
        stuck = self._give_up_stuck()
        events, self._events = tuple(self._events), []
        busy = {lane: place.stage for lane, place in self._lanes.items() if place.stage is not None}
        ready = self._ready()
        train = [stage for digest in ready if not (stage := self._board.stages[digest]).alone]
        return QueueState(
            events=events,
            busy=busy,
            unsettled=len(self._board.unsettled()),
            wanted=0 if self._stopping else self._wanted(len(busy), ready),
            placed={lane: tuple(w.node for w in place.workers.values()) for lane, place in self._lanes.items()},
            stuck=stuck,
            excluded=self._excluded,
            avoid=frozenset().union(*map(self._avoided, ready)),
            sizes=self._shares.wanted(train, self._up(), most=len(self._lanes)),
            sizes_of={lane: self._shares.of(self._board.stages[digest]) for lane, digest in busy.items()},
        )

    # How it decides.

    def _refuse(self, reasons: Mapping[str, str]) -> None:
        for digest, reason in reasons.items():
            if not self._board.settled(digest):
                self._events += self._board.fail(digest, reason)

    def _up(self) -> frozenset[int]:
        """Numbers of workers of the lanes that are up."""
        return frozenset(place.size for place in self._lanes.values() if place.size)

    def _decide(self, digest: str, failure: Failure) -> None:
        """Do about a stage that nobody holds any more what the policy says."""
        unwanted = self._board.given_up(digest) or self._rivals.took_over(digest)
        self._rivals.let_go(digest)
        if unwanted:
            return
        decision = decide(digest, failure, self._history, self._budgets, self._room)
        self._history.append(Incident(digest, failure.kind, failure.nodes))
        self._decisions[digest] = (decision, self._clock())
        self._events += [NodeExcluded(node, failure.reason) for node in sorted(decision.exclude - self._excluded)]
        self._excluded = decision.exclude
        if decision.action == "fail":
            self._events += self._board.fail(digest, decision.reason)
        else:
            self._events.append(StageRetried(digest, failure.kind, decision.reason, decision.action))

    def _learn(self, event: Event) -> None:
        """Something became known of a stage at another run."""
        if isinstance(event, StageFound):
            if self._board.settled(event.stage) and not self._board.given_up(event.stage):
                return
            self._board.finish(event.stage)
        self._events.append(event)

    def _take_back(self, place: Place, failure: Failure) -> None:
        """Retire a group; what it held goes to whoever asks next, unless it has failed too often."""
        digest = place.retire()
        if digest is not None:
            self._decide(digest, failure)

    def _give_up_stuck(self) -> tuple[Any, ...]:
        handles: list[Any] = []
        for place in self._lanes.values():
            if place.stage is not None and self._overdue_s(place.stage) > self._grace_s:
                digest, place.stage = place.stage, None
                handles += [worker.handle for worker in place.workers.values()]
                reason = f"{self._past_deadline()} It did not react and its workers were killed."
                self._decide(digest, Failure("deadline", reason))
        return tuple(handles)

    def _avoided(self, digest: str) -> frozenset[str]:
        """Nodes on which this stage shall not be tried for now."""
        decision, at = self._decisions.get(digest, (None, 0.0))
        if decision is None or self._clock() - at > ELSEWHERE_S:
            return frozenset()
        return decision.avoid

    def _ready(self) -> list[str]:
        """Stages that a lane could take, the most urgent first."""
        held = {place.stage for place in self._lanes.values()}
        now = self._clock()
        paused = {digest for digest, (decision, at) in self._decisions.items() if now - at < decision.pause_s}
        return [
            digest
            for digest in self._board.ready()
            if digest not in held and digest not in paused and not self._rivals.are_at(digest)
        ]

    def _choose(self, lane: int) -> str | None:
        stages = self._board.stages
        others = [place.stage for number, place in self._lanes.items() if number != lane and place.stage is not None]
        if any(stages[digest].alone for digest in others):
            return None
        here = self._lanes[lane].nodes()
        ready = [digest for digest in self._ready() if not here & self._avoided(digest)]
        size = self._lanes[lane].size
        trains = [d for d in ready if not stages[d].alone and self._shares.suit(stages[d], size)]
        measures = [] if others else [digest for digest in ready if stages[digest].alone]
        # Several lanes: measuring stops all of them, so it waits until there is nothing to train. One lane: it costs
        # nothing, and results come early.
        choice = measures + trains if len(self._lanes) == 1 else trains + measures
        return next((digest for digest in choice if self._rivals.take(digest)), None)

    def _assign(self, lane: int, digest: str) -> Assignment:
        place = self._lanes[lane]
        place.stage, place.idle_since = digest, None
        self._attempts[digest] += 1
        self._started_at.setdefault(digest, self._clock())
        self._events.append(StageStarted(digest, lane, self._attempts[digest], time.time()))
        return place.turn(Assignment("run", self._board.stages[digest]))

    def _idle(self, place: Place) -> Assignment:
        held = {other.stage for other in self._lanes.values()}
        if not self._open_ended and held.issuperset(self._board.unsettled()):
            return place.turn(END)
        if self._suits_nobody():
            return place.turn(END)
        if place.idle_since is None:
            place.idle_since = self._clock()
        others_work = any(other.stage is not None for other in self._lanes.values())
        if others_work and self._clock() - place.idle_since > IDLE_LANE_S:
            return place.turn(END)
        return WAIT

    def _suits_nobody(self) -> bool:
        """Whether a stage waits that no lane that is up can train. While something is measured, it goes on waiting."""
        stages = self._board.stages
        if not self._shares.limited:
            return False
        if any(place.stage is not None and stages[place.stage].alone for place in self._lanes.values()):
            return False
        waits = [stages[digest] for digest in self._ready() if not stages[digest].alone]
        return any(not any(self._shares.suit(stage, size) for size in self._up()) for stage in waits)

    def _wanted(self, busy: int, ready: list[str]) -> int:
        trains = sum(not self._board.stages[digest].alone for digest in ready)
        return max(busy + trains, min(1, len(ready)))

    def _overdue_s(self, digest: str) -> float:
        if self._deadline_s is None:
            return 0.0
        return self._clock() - self._started_at[digest] - self._deadline_s

    def _past_deadline(self) -> str:
        assert self._deadline_s is not None
        return (
            f"it ran longer than `resources.stage_deadline_minutes: {self._deadline_s / 60:g}`. Its progress is kept: "
            "raise the limit and run the same command again to go on."
        )
