"""What happens during a run, as values. Lanes make them, the queue collects them, the driver hands them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class LaneDown:
    """A worker group ended."""

    lane: int
    reason: str | None
    """`None` when its work was done."""


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
    | StageStarted
    | StageFinished
    | StageFailed
    | StageSkipped
    | StageStopped
    | PlanGrew
    | Progress
)
