"""On how many workers each stage can be trained, and which lanes therefore take it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from orchestrator.planning.plan import Stage

Counts = tuple[int, ...]
"""Numbers of workers."""


class Shares:
    """Each stage's own batch decides.

    Args:
        counts: numbers of workers that share a stage's batches; `None` = any number does, of every stage.
    """

    def __init__(self, counts: Callable[[Stage], Counts] | None = None) -> None:
        self._counts = counts
        self._known: dict[str, Counts] = {}

    @property
    def limited(self) -> bool:
        """Whether the number of workers of a lane matters at all."""
        return self._counts is not None

    def of(self, stage: Stage) -> Counts:
        """Numbers of workers that share the stage's batches; empty = any."""
        if self._counts is None or stage.alone:
            return ()
        if stage.digest not in self._known:
            self._known[stage.digest] = self._counts(stage)
        return self._known[stage.digest]

    def suit(self, stage: Stage, workers: int) -> bool:
        """Whether a lane of so many workers can train the stage."""
        counts = self.of(stage)
        return not counts or workers in counts

    def wanted(self, ready: Sequence[Stage], lanes: Collection[int], most: int) -> tuple[Counts, ...]:
        """What lanes that are started now should have, by stages that wait.

        Args:
            ready: stages that wait for a lane, the most urgent first.
            lanes: numbers of workers of the lanes that are up. What none of them can train comes first.
            most: stages for which there is an entry each; what others want stands there once.
        """
        if not self.limited:
            return ()
        later = [any(self.suit(stage, workers) for workers in lanes) for stage in ready]
        order = sorted(range(len(ready)), key=later.__getitem__)
        counts = [self.of(ready[i]) for i in order]
        return (*counts[:most], *dict.fromkeys(counts[most:]))
