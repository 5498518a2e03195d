"""What the training loop takes and gives; free of ray and mlflow, and of torch too, so that drivers can import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import TrainStage


@dataclass(frozen=True)
class WorkerContext:
    """Where this process stands in its worker group. The process group is up when `world_size > 1`."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    """`cpu` or `cuda:0`."""
    threads: int = 1
    """Compute threads on CPU."""
    deadline_s: float | None = None
    """Wall-clock limit of the stage, in seconds."""


@dataclass(frozen=True)
class Progress:
    """What rank 0 says while it trains. `kind` is `start`, `step` (at most twice a second), `epoch` or `resumed`."""

    kind: Literal["start", "step", "epoch", "resumed"]
    stage: str
    """Digest."""
    epoch: int = 0
    step: int = 0
    """Optimiser steps done since the start of the stage."""
    total_steps: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """`loss`, `lr`, `images_per_s`; at `epoch` also `val_top1`, `val_top5`, `val_loss`, loss terms and
    `<strategy>.<name>`."""


@dataclass(frozen=True)
class StageIO:
    """What a stage may touch outside itself."""

    store: ArtifactStore
    scratch: Path
    """Private local folder for this stage in this process."""
    report: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    """True when the stage should save a checkpoint and return at the next step (Ctrl-C, preemption)."""


RunStage = Callable[[TrainStage, WorkerContext, StageIO], dict[str, Any]]
"""``orchestrator.training.stage.run_train_stage``: trains to the end, commits `stages/<digest>` and returns
`result.json`'s content; or raises `StageInterrupted` after `should_stop()`, its progress committed."""


class StageInterrupted(Exception):
    """The stage stopped on request; its progress is committed and the next run goes on from it."""
