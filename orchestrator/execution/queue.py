"""Which lane runs which stage next. Free of Ray, so that it can be tested as plain code; the run makes it an actor.

A **lane** is a place for a worker group, a **group** one life of it: when a worker dies, the same lane gets a new
group. Groups ask for work turn by turn; every worker of a group asks for the same turn and gets the same answer, so
they need no communication of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.execution.events import (
    Event,
    LaneUp,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    StageStopped,
)
from orchestrator.planning.plan import Stage
from orchestrator.training.interface import Progress

IDLE_LANE_S = 120.0
"""A lane that finds no work for so long, while others are busy, ends and frees its resources."""
DEADLINE_GRACE_S = 60.0
"""Time between asking an overdue stage to stop and killing its workers."""


@dataclass(frozen=True)
class Assignment:
    """Answer to a lane that asks for its next stage."""

    kind: Literal["run", "wait", "end"]
    stage: Stage | None = None


_WAIT = Assignment("wait")
_END = Assignment("end")


@dataclass(frozen=True)
class QueueState:
    """What the driver needs to know, in one answer."""

    events: tuple[Event, ...]
    """What happened since the last time."""
    busy: Mapping[int, str]
    """Lane → digest of the stage it holds."""
    unsettled: int
    """Stages that are neither finished, failed nor skipped."""
    wanted: int
    """Lanes that could work right now, those that do included."""
    stuck: tuple[Any, ...]
    """Handles of workers whose stage ignored its deadline; they must be killed."""


@dataclass
class _Lane:
    group: str | None = None
    retired: set[str] = field(default_factory=set)
    """Earlier groups; whatever still arrives from them is ignored."""
    workers: dict[int, tuple[str, Any]] = field(default_factory=dict)
    """Rank → its description and its handle."""
    turns: list[Assignment] = field(default_factory=list)
    stage: str | None = None
    """Digest of the stage that this lane holds."""
    idle_since: float | None = None


class StageQueue:
    """Hands ready stages to lanes.

    A stage is ready once its parents are finished. A measure stage besides needs the machine for itself: it is
    handed out when no other lane holds a stage, and while it runs nothing else is. A failed stage takes its
    descendants with it, and nothing else.

    Args:
        stages: digest → stage, parents first.
        done: digests of finished stages.
        num_lanes: lanes that will ask.
        max_retries: how often a stage is begun again after a worker died.
        deadline_s: wall-clock limit of a stage over all its attempts in this run, in seconds.
        open_ended: whether stages may be added; lanes then wait for them until `close`.
        clock: seconds; a parameter for tests.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        done: Collection[str] = (),
        *,
        num_lanes: int = 1,
        max_retries: int = 0,
        deadline_s: float | None = None,
        open_ended: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stages: dict[str, Stage] = {}
        self._finished: set[str] = set()
        self._given_up: set[str] = set()
        self._open_ended = open_ended
        self._failed: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._started_at: dict[str, float] = {}
        self._lanes = {lane: _Lane() for lane in range(num_lanes)}
        self._failed_ranks: dict[tuple[int, str, int], set[int]] = {}
        self._max_retries = max_retries
        self._deadline_s = deadline_s
        self._clock = clock
        self._stopping = False
        self._events: list[Event] = []
        self._skipped: dict[str, str] = {}
        self._children: dict[str, list[str]] = {}
        self._order: dict[str, int] = {}
        self.add(stages, done)

    # What workers call.

    def join(self, lane: int, group: str, rank: int, world_size: int, worker: str, handle: Any = None) -> None:
        """A worker of a group is ready. What the group before it held is handed to it in its first turn, unless it
        has been tried often enough. `handle` is what `QueueState.stuck` gives back."""
        place = self._lanes[lane]
        if group in place.retired:
            return
        if place.group != group:
            self._begin_group(lane, group)
        place.workers[rank] = (worker, handle)
        if len(place.workers) == world_size:
            self._events.append(LaneUp(lane, tuple(place.workers[r][0] for r in sorted(place.workers))))

    def ask(self, lane: int, group: str, turn: int) -> Assignment:
        """What this group does in this turn; the first worker that asks decides it for all."""
        place = self._lanes[lane]
        if place.group != group:
            return _END
        if turn < len(place.turns):
            return place.turns[turn]
        assert turn == len(place.turns), f"turn {turn} asked for before turn {len(place.turns)}"
        if place.stage is not None and place.turns:  # another worker of the group is still at the turn before
            return _WAIT
        if self._stopping:
            place.stage = None
            return self._end(place)
        # A stage without a turn was held by the group before this one.
        digest = place.stage or self._choose(lane)
        if digest is None:
            return self._idle(place)
        return self._assign(lane, digest)

    def beat(self, lane: int, group: str, progress: Collection[Progress] = ()) -> bool:
        """Takes progress; says whether the group shall save its work and stop."""
        place = self._lanes[lane]
        if place.group != group:
            return True
        self._events.extend(progress)
        if place.stage in self._given_up:
            return True
        return self._stopping or (place.stage is not None and self._overdue_s(place.stage) > 0)

    def finish(self, lane: int, group: str, digest: str, result: dict[str, Any]) -> None:
        """The stage's artefact is committed."""
        place = self._lanes[lane]
        if place.group != group or place.stage != digest:
            return
        place.stage = None
        self._given_up.discard(digest)
        self._finished.add(digest)
        self._events.append(StageFinished(digest, lane, self._clock() - self._started_at[digest], result))

    def fail(self, lane: int, group: str, turn: int, rank: int, reason: str) -> int:
        """A worker gives the stage of a turn up.

        Returns:
            How many workers of the group have given up this turn.
        """
        place = self._lanes[lane]
        ranks = self._failed_ranks.setdefault((lane, group, turn), set())
        ranks.add(rank)
        if place.group == group and place.stage is not None and turn == len(place.turns) - 1:
            digest, place.stage = place.stage, None
            if digest not in self._given_up:
                self._give_up(digest, reason)
        return len(ranks)

    def interrupted(self, lane: int, group: str, digest: str) -> None:
        """The stage saved its progress and returned, as `beat` asked."""
        place = self._lanes[lane]
        if place.group != group or place.stage != digest:
            return
        place.stage = None
        if digest not in self._given_up and self._overdue_s(digest) > 0:
            self._give_up(digest, self._past_deadline())

    # What the driver calls.

    def add(self, stages: Mapping[str, Stage], done: Collection[str] = ()) -> None:
        """More stages, parents first; those that are there already stay as they are, but are given up no longer.

        Args:
            stages: digest → stage; what a finished one read need not be among them.
            done: digests of finished stages.
        """
        new = {digest: stage for digest, stage in stages.items() if digest not in self._stages}
        self._stages |= new
        self._finished |= set(done) & set(self._stages)
        self._given_up -= set(stages)
        for digest, stage in new.items():
            self._attempts[digest] = 0
            for parent in stage.parents:
                self._children.setdefault(parent, []).append(digest)
            lost = next((p for p in stage.parents if p in self._failed or p in self._skipped), None)
            if lost is not None and digest not in self._finished:
                self._skipped[digest] = because_of = self._skipped.get(lost, lost)
                self._events.append(StageSkipped(digest, because_of))
        self._order = {digest: i for i, digest in enumerate(self._by_priority())}

    def give_up(self, reasons: Mapping[str, str]) -> None:
        """Nobody needs these stages any more; one that runs saves its progress and ends.

        Args:
            reasons: digest → why.
        """
        for digest, reason in reasons.items():
            if digest in self._stages and not self._settled(digest):
                self._given_up.add(digest)
                self._events.append(StageStopped(digest, reason))

    def close(self) -> None:
        """No stages will be added any more."""
        self._open_ended = False

    def stop(self) -> None:
        """Hand out nothing more, and ask everybody to save and return."""
        self._stopping = True

    def lost(self, lane: int, reason: str) -> None:
        """A lane ended with an error: its stage goes to whoever asks next, unless it has been tried often enough."""
        place = self._lanes[lane]
        digest, place.stage = place.stage, None
        self._retire(place)
        if digest is not None and digest not in self._given_up and self._attempts[digest] > self._max_retries:
            self._give_up(digest, self._died(digest, reason))

    def abandon(self, reason: str) -> None:
        """No lane can be had: everything that is left fails."""
        for digest in self._stages:
            if not self._settled(digest) and all(parent in self._finished for parent in self._stages[digest].parents):
                self._give_up(digest, reason)

    def holds(self, lane: int) -> str | None:
        """Digest of the stage that a lane holds."""
        return self._lanes[lane].stage

    def poll(self) -> QueueState:
        """What happened since the last call, and how things stand."""
        events, self._events = tuple(self._events), []
        stuck = self._give_up_stuck()
        busy = {lane: place.stage for lane, place in self._lanes.items() if place.stage is not None}
        return QueueState(
            events=events,
            busy=busy,
            unsettled=sum(not self._settled(digest) for digest in self._stages),
            wanted=0 if self._stopping else self._wanted(len(busy)),
            stuck=stuck,
        )

    # How it decides.

    def _give_up_stuck(self) -> tuple[Any, ...]:
        handles: list[Any] = []
        for place in self._lanes.values():
            if place.stage is not None and self._overdue_s(place.stage) > DEADLINE_GRACE_S:
                digest, place.stage = place.stage, None
                handles += [handle for _, handle in place.workers.values()]
                self._give_up(digest, f"{self._past_deadline()} It did not react and its workers were killed.")
        return tuple(handles)

    def _by_priority(self) -> list[str]:
        """Digests, the heads of the longest chains first (in epochs), so that the last lane ends early."""
        height: dict[str, int] = {}
        for digest in reversed(self._stages):
            stage = self._stages[digest]
            own = max(1, stage.epochs)
            below = [height.get(child, 0) for child in self._children.get(digest, ())]
            height[digest] = own + max(below, default=0)
        return sorted(self._stages, key=lambda digest: -height[digest])

    def _settled(self, digest: str) -> bool:
        return any(digest in settled for settled in (self._finished, self._failed, self._skipped, self._given_up))

    def _ready(self) -> list[str]:
        held = {place.stage for place in self._lanes.values()}
        ready = [
            digest
            for digest, stage in self._stages.items()
            if not self._settled(digest)
            and digest not in held
            and all(parent in self._finished for parent in stage.parents)
        ]
        return sorted(ready, key=self._order.__getitem__)

    def _choose(self, lane: int) -> str | None:
        others = [place.stage for number, place in self._lanes.items() if number != lane and place.stage is not None]
        if any(self._stages[digest].alone for digest in others):
            return None
        ready = self._ready()
        trains = [digest for digest in ready if not self._stages[digest].alone]
        measures = [] if others else [digest for digest in ready if self._stages[digest].alone]
        # Several lanes: measuring stops all of them, so it waits until there is nothing to train. One lane: it costs
        # nothing, and results come early.
        choice = measures + trains if len(self._lanes) == 1 else trains + measures
        return choice[0] if choice else None

    def _assign(self, lane: int, digest: str) -> Assignment:
        place = self._lanes[lane]
        place.stage, place.idle_since = digest, None
        self._attempts[digest] += 1
        self._started_at.setdefault(digest, self._clock())
        assignment = Assignment("run", self._stages[digest])
        place.turns.append(assignment)
        self._events.append(StageStarted(digest, lane, self._attempts[digest], self._clock()))
        return assignment

    def _idle(self, place: _Lane) -> Assignment:
        held = {other.stage for other in self._lanes.values()}
        if not self._open_ended and all(self._settled(digest) or digest in held for digest in self._stages):
            return self._end(place)
        if place.idle_since is None:
            place.idle_since = self._clock()
        others_work = any(other.stage is not None for other in self._lanes.values())
        return self._end(place) if others_work and self._clock() - place.idle_since > IDLE_LANE_S else _WAIT

    def _end(self, place: _Lane) -> Assignment:
        """The end of a group is a turn like any other: a worker that went on alone would wait for the rest for ever."""
        place.turns.append(_END)
        return _END

    def _wanted(self, busy: int) -> int:
        ready = self._ready()
        trains = sum(not self._stages[digest].alone for digest in ready)
        return max(busy + trains, min(1, len(ready)))

    def _begin_group(self, lane: int, group: str) -> None:
        place = self._lanes[lane]
        digest, place.stage = place.stage, None
        self._retire(place)
        place.group = group
        if digest in self._given_up:
            return
        if digest is not None and self._attempts[digest] > self._max_retries:
            self._give_up(digest, self._died(digest, "see the worker's log in the Ray dashboard"))
        else:
            place.stage = digest

    def _retire(self, place: _Lane) -> None:
        if place.group is not None:
            place.retired.add(place.group)
        place.group, place.workers, place.turns, place.idle_since = None, {}, [], None

    def _give_up(self, digest: str, reason: str) -> None:
        self._failed[digest] = reason
        self._events.append(StageFailed(digest, reason))
        below = list(self._children.get(digest, ()))
        while below:
            child = below.pop(0)
            if not self._settled(child):
                self._skipped[child] = digest
                self._events.append(StageSkipped(child, digest))
                below.extend(self._children.get(child, ()))

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

    def _died(self, digest: str, reason: str) -> str:
        times = self._attempts[digest]
        return (
            f"its workers died {times} time{'s' if times > 1 else ''} (`resources.max_retries: {self._max_retries}`); "
            f"the last time: {reason}"
        )
