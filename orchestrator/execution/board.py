"""What became of every stage, and which ones may run next: pure bookkeeping over the plan's graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from orchestrator.execution.events import Event, StageFailed, StageSkipped
from orchestrator.planning.plan import Stage


class Board:
    """Stages and how they stand.

    Args:
        stages: digest → stage, parents first.
        done: digests of finished stages.
    """

    def __init__(self, stages: Mapping[str, Stage], done: Collection[str] = ()) -> None:
        self.stages = dict(stages)
        self._finished = set(done) & set(self.stages)
        self._failed: set[str] = set()
        self._skipped: set[str] = set()
        self._children: dict[str, list[str]] = {digest: [] for digest in self.stages}
        for digest, stage in self.stages.items():
            for parent in stage.parents:
                self._children[parent].append(digest)
        self._order = {digest: i for i, digest in enumerate(self._by_priority())}

    def settled(self, digest: str) -> bool:
        """Whether a stage is finished, failed or skipped."""
        return digest in self._finished or digest in self._failed or digest in self._skipped

    def unsettled(self) -> list[str]:
        """Digests of all others, parents first."""
        return [digest for digest in self.stages if not self.settled(digest)]

    def ready(self) -> list[str]:
        """Digests of the unsettled stages whose parents are finished, the most urgent first."""
        ready = [digest for digest in self.unsettled() if all(p in self._finished for p in self.stages[digest].parents)]
        return sorted(ready, key=self._order.__getitem__)

    def finish(self, digest: str) -> None:
        """The stage's artefact is committed."""
        self._finished.add(digest)

    def fail(self, digest: str, reason: str) -> list[Event]:
        """Give a stage up, and with it everything that reads it."""
        self._failed.add(digest)
        events: list[Event] = [StageFailed(digest, reason)]
        below = list(self._children[digest])
        while below:
            child = below.pop(0)
            if not self.settled(child):
                self._skipped.add(child)
                events.append(StageSkipped(child, digest))
                below.extend(self._children[child])
        return events

    def _by_priority(self) -> list[str]:
        """Digests, the heads of the longest chains first (in epochs), so that the last lane ends early."""
        height: dict[str, int] = {}
        for digest in reversed(self.stages):
            own = max(1, self.stages[digest].epochs)
            height[digest] = own + max((height[child] for child in self._children[digest]), default=0)
        return sorted(self.stages, key=lambda digest: -height[digest])
