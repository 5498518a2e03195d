"""The lanes of one run: which of them are up, where they could go, and with how many workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from queue import Empty, SimpleQueue

from cluster import nodes
from orchestrator.execution.admission import Admission, lacking, to_come
from orchestrator.execution.failures import Room
from orchestrator.execution.lane import LaneSpec, drive
from orchestrator.execution.room import room
from orchestrator.execution.shares import Counts
from orchestrator.execution.state import QueueState
from specs.resources import ResourcesSpec

_GROW_AFTER_S = 60.0
"""How long there must be room for more workers before a lane is interrupted to get them, in seconds."""
_SETTLE_S = 15.0
"""How long Ray may take to see that a node is dead, in seconds; before, a group that lost it would be placed there."""
_ROOM_PATIENCE_S = 1800.0
"""How long a run waits for nodes when what is left of the cluster holds no lane, in seconds."""
_UNKNOWN = 1000
"""Workers that an autoscaler is believed to have room for when it does not tell its kinds of nodes."""


class Lanes:
    """Starts lanes where there is room, each in a thread that waits for its end.

    Args:
        common: what all lanes have in common; number, name, workers and nodes to avoid are filled in.
        admission: how many there are, and how large they may be.
        resources: what the spec asks for, for messages.
    """

    def __init__(self, common: LaneSpec, admission: Admission, resources: ResourcesSpec) -> None:
        self._common, self._admission, self._resources = common, admission, resources
        self._threads: dict[int, threading.Thread] = {}
        self._workers: dict[int, int] = {}
        """Lane → its number of workers."""
        self._ended: SimpleQueue[tuple[int, Exception | None]] = SimpleQueue()
        self._num_starts = 0
        self.there: frozenset[str] = frozenset()
        """Ids of the nodes that were there when the cluster was last looked at."""
        self._nodes: dict[str, Mapping[str, float]] = {}
        self._leaving: frozenset[str] = frozenset()
        """Nodes that are about to be taken away: no group shall be placed there."""
        self._could_grow_since: dict[int, float] = {}
        self._not_before = self._without_room_since = float("-inf")

    def __len__(self) -> int:
        """How many are up or on their way."""
        return len(self._threads)

    def look(self, state: QueueState) -> Room:
        """See what nodes there are, and what room they have beside the lanes."""
        self._nodes, self._leaving = nodes.alive(), nodes.draining()
        self.there = frozenset(self._nodes)
        growth = nodes.growth(self._nodes)
        if growth is None:
            self._nodes["to come"] = {name: amount * _UNKNOWN for name, amount in self._admission.worker.items()}
        else:
            self._nodes |= {f"to come {i}": node for i, node in enumerate(to_come(growth))}
        return self._room(state)

    def start_wanted(self, state: QueueState) -> None:
        """Bring up lanes for which there is work and room."""
        for lane in range(self._admission.lanes):
            if len(self) >= state.wanted or time.monotonic() < self._not_before:
                return
            if lane not in self._threads and (place := self._place(state)) is not None:
                self._start(lane, *place)

    def start_all(self, state: QueueState) -> None:
        """Bring up all lanes at once: most of their start is waiting."""
        for lane in range(self._admission.lanes):
            first, *_ = self._sizes(state)
            self._start(lane, _most(first, _free(self._room(state))))

    def ended(self, state: QueueState) -> Iterator[tuple[int, Exception | None]]:
        """Lanes that ended since the last time, and with which error."""
        while True:
            try:
                lane, error = self._ended.get_nowait()
            except Empty:
                return
            del self._threads[lane]
            if error is not None and len(set(state.placed[lane])) > 1:
                self._not_before = time.monotonic() + _SETTLE_S
            yield lane, error

    def without_room(self, state: QueueState) -> str | None:
        """Why no lane can be had, if that is so now."""
        if len(self) or not state.wanted or self._room(state).lane_fits_without(state.excluded):
            return None
        there = [node for name, node in self._nodes.items() if name not in state.excluded]
        return f"what is left of the cluster holds no lane: {lacking(self._resources, there)}"

    def waited_too_long(self, *, for_room: bool) -> bool:
        """Whether no lane was up for so long that nobody is going to bring nodes."""
        now = time.monotonic()
        if not for_room:
            self._without_room_since = float("-inf")
        elif self._without_room_since == float("-inf"):
            self._without_room_since = now
        return for_room and now - self._without_room_since > _ROOM_PATIENCE_S

    def to_grow(self, state: QueueState, beside: Room) -> tuple[int, str] | None:
        """A lane that could have had more workers for a while, and why; none while another waits for that room."""
        for lane, workers in self._workers.items():
            counts = state.sizes_of.get(lane) or self._admission.counts
            larger = _most(counts, workers + _free(beside, state.excluded)) if lane in state.busy else workers
            up = lane in self._threads and bool(state.placed[lane])
            if larger <= workers or not up or len(self) < state.wanted:
                self._could_grow_since.pop(lane, None)
            elif time.monotonic() - self._could_grow_since.setdefault(lane, time.monotonic()) > _GROW_AFTER_S:
                return lane, f"there is room for {larger} workers instead of {workers}"
        return None

    def _room(self, state: QueueState) -> Room:
        placed = [state.placed[lane] for lane in self._threads if state.placed[lane]]
        starting = sum(self._workers[lane] for lane in self._threads if not state.placed[lane])
        fewest = min(min(counts) for counts in self._sizes(state))
        return room(self._nodes, self._admission.worker, fewest, placed, starting)

    def _sizes(self, state: QueueState) -> list[Counts]:
        """Numbers of workers that the next lane may have, by what waits for it; lanes on their way have theirs."""
        starting = sum(not state.placed[lane] for lane in self._threads)
        return [counts or self._admission.counts for counts in state.sizes[starting:] or state.sizes or ((),)]

    def _place(self, state: QueueState) -> tuple[int, frozenset[str]] | None:
        """How many workers a new lane has, and which nodes it avoids; `None` if there is no room for any."""
        beside = self._room(state)
        for counts in self._sizes(state):
            for avoid in (state.excluded | state.avoid, state.excluded):
                if (free := _free(beside, avoid)) >= min(counts):
                    return _most(counts, free), avoid.intersection(self._nodes)
        return None

    def _start(self, lane: int, workers: int, avoid: frozenset[str] = frozenset()) -> None:
        self._num_starts += 1
        self._workers[lane] = workers
        self._could_grow_since.pop(lane, None)
        name = f"{self._common.run_name}-lane{lane}-{self._num_starts}"
        spec = replace(self._common, lane=lane, workers=workers, avoid=avoid | self._leaving, run_name=name)
        thread = threading.Thread(target=self._drive, args=(spec,), name=f"slimvit-lane-{lane}", daemon=True)
        self._threads[lane] = thread
        thread.start()

    def _drive(self, spec: LaneSpec) -> None:
        try:
            drive(spec)
        except SystemExit as left:  # noqa: F841 - held, see below
            # The run left the cluster while this group was on its way, and this thread would end by itself. Where it
            # frees what it held of Ray while Ray shuts down, Ray may end the whole process: so it frees nothing.
            threading.Event().wait()
        except Exception as error:
            self._ended.put((spec.lane, error))
        else:
            self._ended.put((spec.lane, None))


def _free(beside: Room, avoid: Collection[str] = ()) -> int:
    """Workers for which there is room on the other nodes."""
    return sum(number for node, number in beside.free.items() if node not in avoid)


def _most(counts: Counts, free: int) -> int:
    """The most workers for which there is room; the fewest, if there is room for none."""
    return max((workers for workers in counts if workers <= free), default=min(counts))
