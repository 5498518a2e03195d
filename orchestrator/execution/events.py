"""What happens during a run, as values. Lanes make them, the queue collects them, the driver hands them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.execution.failures import Kind
from orchestrator.planning.plan import Plan
from orchestrator.training.interface import Progress


@dataclass(frozen=True)
class RunStarted:
    """The plan is about to run."""

    to_run: tuple[str, ...]
    """Digests of the stages that are not in the store yet, parents first."""
    done: tuple[str, ...]
    """Digests of the stages that were finished by an earlier run."""
    lanes: int
    dashboard_url: str | None
    """Ray dashboard."""


@dataclass(frozen=True)
class LaneUp:
    """A worker group is ready, for the first time or after a restart."""

    lane: int
    workers: tuple[str, ...]
    """`host:pid device` of each worker, by rank."""
    nodes: tuple[str, ...] = ()
    """Id of the node of each."""


@dataclass(frozen=True)
class LaneDown:
    """A worker group ended."""

    lane: int
    reason: str | None
    """`None` when its work was done."""


@dataclass(frozen=True)
class NoRoom:
    """What is left of the cluster holds no lane; the run waits for nodes."""

    reason: str


@dataclass(frozen=True)
class StageStarted:
    """A lane began, or after the death of a worker went on with, a stage."""

    stage: str
    """Digest."""
    lane: int
    attempt: int
    """1 at first."""
    at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class StageFinished:
    """A stage's artefact is committed."""

    stage: str
    lane: int
    seconds: float
    """From its start in this run to its commit, restarts included."""
    result: dict[str, Any] = field(default_factory=dict)
    """Content of its `result.json`."""


@dataclass(frozen=True)
class StageRetried:
    """A stage could not go on where it was; it will be begun again, from its progress."""

    stage: str
    kind: Kind
    """What happened to it."""
    reason: str
    action: Literal["retry", "retry elsewhere"]


@dataclass(frozen=True)
class NodeExcluded:
    """Workers died on a node again and again while others did well: nothing is started there any more."""

    node: str
    """Ray's id of the node."""
    reason: str
    """What happened there last."""


@dataclass(frozen=True)
class StageFailed:
    """A stage gave up."""

    stage: str
    reason: str


@dataclass(frozen=True)
class StageSkipped:
    """A stage cannot run because one that it reads failed."""

    stage: str
    because_of: str
    """Digest of the stage that failed."""


@dataclass(frozen=True)
class StageElsewhere:
    """Another run is at this stage; this one waits for its result."""

    stage: str
    """Digest."""
    host: str
    """Where that run is."""
    since: float
    """Seconds since the epoch, by that machine's clock."""


@dataclass(frozen=True)
class StageFound:
    """Another run finished a stage that this one was to run."""

    stage: str
    """Digest."""


@dataclass(frozen=True)
class StoreSilent:
    """The store cannot be reached, so that no new stage can begin; it is asked again."""

    reason: str


@dataclass(frozen=True)
class StageStopped:
    """A stage was given up, because every combination that needs it was."""

    stage: str
    reason: str


@dataclass(frozen=True)
class PlanGrew:
    """A search has proposed more combinations, or given some up."""

    plan: Plan
    """Holds everything that the plan before it held."""
    to_run: tuple[str, ...]
    """Digests of the stages that are to run besides those before."""


Event = (
    RunStarted
    | LaneUp
    | LaneDown
    | NoRoom
    | NodeExcluded
    | StoreSilent
    | StageStarted
    | StageRetried
    | StageFinished
    | StageFailed
    | StageSkipped
    | StageElsewhere
    | StageFound
    | StageStopped
    | PlanGrew
    | Progress
)
