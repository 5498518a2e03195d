"""What may change a plan while it runs: a search. The driver asks it after every look at the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.execution.events import Event
from orchestrator.planning.plan import Plan


@dataclass(frozen=True)
class Change:
    """What follows from what happened."""

    plan: Plan
    """The plan as it is now; holds everything that it held before."""
    wanted: frozenset[str]
    """Digests of all stages that are to run and are not finished."""
    given_up: Mapping[str, str]
    """Digest of a stage that nobody needs any more → why."""


class Steering(Protocol):
    """Steers one run."""

    @property
    def exhausted(self) -> bool:
        """Whether no stage will be added any more."""
        ...

    @property
    def side_by_side(self) -> int:
        """Combinations that may be under way at a time."""
        ...

    def wanted(self) -> frozenset[str]:
        """Digests of the stages that are to run from the start."""
        ...

    def step(self, events: Sequence[Event]) -> Change | None:
        """Take in what happened, in order; `None` if nothing follows from it."""
        ...
