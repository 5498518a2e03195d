"""What became of every stage, and which ones may run next: pure bookkeeping over the plan's graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from orchestrator.execution.events import Event, StageFailed, StageSkipped, StageStopped
from orchestrator.planning.plan import Stage


class Board:
    """Stages and how they stand.

    Args:
        stages: digest → stage, parents first.
        done: digests of finished stages.
    """

    def __init__(self, stages: Mapping[str, Stage], done: Collection[str] = ()) -> None:
        self.stages: dict[str, Stage] = {}
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._skipped: dict[str, str] = {}
        """Stage → the failed one that it needs."""
        self._given_up: set[str] = set()
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        self._order: dict[str, int] = {}
        self.add(stages, done)

    def add(self, stages: Mapping[str, Stage], done: Collection[str] = ()) -> list[Event]:
        """More stages, parents first; those that are there already stay as they are, but are given up no longer.

        Args:
            stages: digest → stage; what a finished one read need not be among them.
            done: digests of finished stages.

        Returns:
            Which of them are skipped, because what they need has failed.
        """
        new = {digest: stage for digest, stage in stages.items() if digest not in self.stages}
        self.stages |= new
        self._finished |= set(done) & set(self.stages)
        self._given_up -= set(stages)
        events: list[Event] = []
        for digest, stage in new.items():
            for parent in stage.parents:
                self._children[parent].append(digest)
            lost = next((p for p in stage.parents if p in self._failed or p in self._skipped), None)
            if lost is not None and digest not in self._finished:
                self._skipped[digest] = self._skipped.get(lost, lost)
                events.append(StageSkipped(digest, self._skipped[digest]))
        self._order = {digest: i for i, digest in enumerate(self._by_priority())}
        return events

    def settled(self, digest: str) -> bool:
        """Whether a stage is finished, failed, skipped or given up."""
        return any(digest in ones for ones in (self._finished, self._failed, self._skipped, self._given_up))

    def given_up(self, digest: str) -> bool:
        """Whether nobody needs the stage any more."""
        return digest in self._given_up

    def unsettled(self) -> list[str]:
        """Digests of all others, parents first."""
        return [digest for digest in self.stages if not self.settled(digest)]

    def ready(self) -> list[str]:
        """Digests of the unsettled stages whose parents are finished, the most urgent first."""
        ready = [digest for digest in self.unsettled() if all(p in self._finished for p in self.stages[digest].parents)]
        return sorted(ready, key=self._order.__getitem__)

    def finish(self, digest: str) -> None:
        """The stage's artefact is committed."""
        self._given_up.discard(digest)
        self._finished.add(digest)

    def give_up(self, reasons: Mapping[str, str]) -> list[Event]:
        """Nobody needs these stages any more.

        Args:
            reasons: digest → why.
        """
        stopped = {d: why for d, why in reasons.items() if d in self.stages and not self.settled(d)}
        self._given_up |= set(stopped)
        return [StageStopped(digest, reason) for digest, reason in stopped.items()]

    def fail(self, digest: str, reason: str) -> list[Event]:
        """Give a stage up, and with it everything that reads it."""
        self._failed.add(digest)
        events: list[Event] = [StageFailed(digest, reason)]
        below = list(self._children[digest])
        while below:
            child = below.pop(0)
            if not self.settled(child):
                self._skipped[child] = digest
                events.append(StageSkipped(child, digest))
                below.extend(self._children[child])
        return events

    def _by_priority(self) -> list[str]:
        """Digests, the heads of the longest chains first (in epochs), so that the last lane ends early."""
        height: dict[str, int] = {}
        for digest in reversed(self.stages):
            own = max(1, self.stages[digest].epochs)
            height[digest] = own + max((height.get(child, 0) for child in self._children[digest]), default=0)
        return sorted(self.stages, key=lambda digest: -height[digest])
