"""Other runs on the same store: which stages they are at, and which of ours they took over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol

from cluster.leases import Elsewhere
from orchestrator.execution.events import Event, StageElsewhere, StageFound, StoreSilent

STORE_PAUSE_S = 10.0
"""After the store could not be reached, it is asked again so much later."""


class StageLeases(Protocol):
    """What is asked of `cluster.leases.Leases`; names are those of the stages' artefacts."""

    def take(self, name: str) -> Elsewhere | Literal["taken", "finished"]:
        """Take a lease, or say who holds it."""
        ...

    def give_back(self, name: str, *, finished: bool) -> None:
        """Let a lease go; one that is not held is fine."""
        ...

    def watch(self, name: str) -> None:
        """Tell in `changes` what becomes of a lease that another run holds."""
        ...

    def changes(self) -> Collection[tuple[str, Literal["lost", "free", "finished"]]]:
        """What became known since the last call."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Rivals:
    """Who may compute which stage; stages are named by their digests.

    Args:
        leases: `None` = this is the only run there can be.
        say: told what is to be known of stages at other runs; `StageFound` = one of them finished it.
        clock: seconds.
    """

    def __init__(self, leases: StageLeases | None, say: Callable[[Event], None], clock: Callable[[], float]) -> None:
        self._leases, self._say, self._clock = leases, say, clock
        self._theirs: set[str] = set()
        self._taken_over: set[str] = set()
        self._silent_until = float("-inf")

    def are_at(self, digest: str) -> bool:
        """Whether another run computes this stage, as far as is known."""
        return digest in self._theirs

    def took_over(self, digest: str) -> bool:
        """Whether another run took this stage over while a lane was at it: the lane shall stop."""
        return digest in self._taken_over

    def take(self, digest: str) -> bool:
        """Whether this run may compute a stage; if not, what becomes of it is said later."""
        if self._leases is None:
            return True
        if self._clock() < self._silent_until:
            return False
        try:
            answer = self._leases.take(artefact(digest))
        except OSError as error:
            self._silent_until = self._clock() + STORE_PAUSE_S
            self._say(StoreSilent(str(error)))
            return False
        if answer == "taken":
            return True
        if answer == "finished":
            self._say(StageFound(digest))
        else:
            self._theirs.add(digest)
            self._say(StageElsewhere(digest, answer.host, answer.since))
        return False

    def let_go(self, digest: str, *, finished: bool = False) -> None:
        """No lane is at the stage any more. Of one that was taken over, what becomes of it is said later."""
        if self._leases is None:
            return
        if digest in self._taken_over and not finished:
            self._theirs.add(digest)
            self._leases.watch(artefact(digest))
        self._taken_over.discard(digest)
        self._leases.give_back(artefact(digest), finished=finished)

    def hear(self, held: Collection[str]) -> None:
        """Take in what became known since the last time.

        Args:
            held: stages that lanes are at.
        """
        for name, kind in () if self._leases is None else self._leases.changes():
            digest = name.rpartition("/")[2]
            if kind == "lost":
                if digest in held:
                    self._taken_over.add(digest)
            elif digest in self._theirs:
                self._theirs.discard(digest)
                if kind == "finished":
                    self._say(StageFound(digest))

    def close(self) -> None:
        """Give everything back: no lane works for this run any more."""
        if self._leases is not None:
            self._leases.close()


def artefact(digest: str) -> str:
    """Name of a stage's artefact, and of its lease."""
    return f"stages/{digest}"
