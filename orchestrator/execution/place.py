"""A lane as the queue sees it: who works there, what it holds, and what its workers were told turn by turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.execution.failures import Failure
from orchestrator.planning.plan import Stage


@dataclass(frozen=True)
class Assignment:
    """Answer to a lane that asks for its next stage."""

    kind: Literal["run", "wait", "end"]
    stage: Stage | None = None


WAIT = Assignment("wait")
END = Assignment("end")


@dataclass(frozen=True)
class Worker:
    """One process of a worker group."""

    name: str
    """`host:pid device`."""
    handle: Any
    """What `QueueState.stuck` gives back."""
    node: str
    """Id of its node."""


@dataclass
class Place:
    """A place for a worker group. A **group** is one life of it: after a death the same place gets a new group."""

    group: str | None = None
    retired: set[str] = field(default_factory=set)
    """Earlier groups; whatever still arrives from them is ignored."""
    size: int = 0
    """Workers of the group, whether they are ready yet or not; 0 without a group."""
    workers: dict[int, Worker] = field(default_factory=dict)
    """By rank."""
    turns: list[Assignment] = field(default_factory=list)
    stage: str | None = None
    """Digest of the stage that the group holds."""
    idle_since: float | None = None
    leaving: Failure | None = None
    """Why the group shall save its work and end, though the run goes on."""

    def nodes(self, ranks: frozenset[int] | None = None) -> frozenset[str]:
        """Ids of the nodes of some of its workers, or of all."""
        return frozenset(w.node for rank, w in self.workers.items() if w.node and (ranks is None or rank in ranks))

    def turn(self, assignment: Assignment) -> Assignment:
        """Every worker of the group gets the same answer for a turn; the end is one like any other, because a worker
        that went on alone would wait for the rest for ever."""
        self.turns.append(assignment)
        return assignment

    def retire(self) -> str | None:
        """The group is gone; gives what it held."""
        if self.group is not None:
            self.retired.add(self.group)
        held, self.stage = self.stage, None
        self.group, self.size, self.workers, self.turns = None, 0, {}, []
        self.idle_since, self.leaving = None, None
        return held
