"""What keeps a stage from training that shows before any worker starts: its precision, its batches, its workers.

What the spec alone decides is refused by the plan. How many workers share a batch is no part of a result, so a finished
spec stays good whatever `resources` says: that is refused only where something is to run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from orchestrator.planning.environment import training_device
from orchestrator.planning.plan import Plan, Stage, TrainStage
from specs.data import DataSpec
from specs.resources import ResourcesSpec
from specs.training import TrainingSpec
from strategies.api import Strategy


def obstacles(training: TrainingSpec, resources: ResourcesSpec, num_train: int) -> Iterator[str]:
    """Every reason, each with the way out, whatever the number of workers. Workers check the same again.

    Args:
        num_train: training images, `data.limit_train` applied.
    """
    if training.precision == "fp16" and training_device(resources) == "cpu":
        yield (
            "`training.precision: fp16` needs a GPU. Way out: `bf16` or `fp32`, or `resources.gpus_per_worker` above 0."
        )
    if training.epochs and training.batch_size > num_train:
        yield (
            f"`training.batch_size` {training.batch_size} is more than the {num_train} training images, so no batch is "
            f"full. Way out: at most {num_train}, or more images."
        )


def too_short(strategies: Sequence[Strategy[Any]], training: TrainingSpec, num_train: int) -> Iterator[str]:
    """Every strategy that would change the network when nothing is trained any more.

    Args:
        num_train: training images, `data.limit_train` applied.
    """
    steps_per_epoch = num_train // training.batch_size
    for strategy in strategies:
        moments = strategy.moments()
        if moments and round(moments[-1] * steps_per_epoch) >= steps_per_epoch * training.epochs:
            yield (
                f"`{strategy.name}` cuts the network for the last time after {moments[-1]:g} epochs, and training has "
                f"to follow, but `training.epochs` is {training.epochs}. Way out: more epochs, or fewer steps."
            )


def cannot_start(plan: Plan, to_run: Collection[str], resources: ResourcesSpec) -> dict[str, str]:
    """Stages to run whose batches no number of workers that `resources` allows can share → why."""
    wanted = (stage for digest, stage in plan.stages.items() if digest in to_run)
    return {stage.digest: reason for stage in wanted if (reason := not_shared(stage, resources)) is not None}


def not_shared(stage: Stage, resources: ResourcesSpec) -> str | None:
    """Why no number of workers that `resources` allows shares the stage's batches; `None` if one does."""
    if not isinstance(stage, TrainStage) or worker_counts(stage, resources):
        return None
    name, fewest, most = stage.label.partition("[")[0], resources.fewest_workers, resources.most_workers
    if fewest == most:
        return f"stage `{name}`: {' '.join(_not_shared(stage.training, most))}"
    size = stage.training.batch_size
    return (
        f"stage `{name}`: no number of workers from {fewest} to {most} shares its `training.batch_size` {size}. Way "
        "out: a wider `resources.workers`, a batch size with more divisors, or another `training.micro_batch`."
    )


def worker_counts(stage: Stage, resources: ResourcesSpec) -> tuple[int, ...]:
    """Numbers of workers, fewest first, that `resources` allows and that share the stage's batches."""
    allowed = range(resources.fewest_workers, resources.most_workers + 1)
    if not isinstance(stage, TrainStage):
        return tuple(allowed)
    return tuple(workers for workers in allowed if not any(_not_shared(stage.training, workers)))


def num_training_images(data: DataSpec, in_all: int) -> int:
    """How many of a data set's training images a spec uses."""
    return in_all if data.limit_train is None else min(in_all, data.limit_train)


def _not_shared(training: TrainingSpec, workers: int) -> Iterator[str]:
    size = training.images_at_once(workers)
    together = size * workers
    augmentation = training.augmentation
    if training.batch_size % together:
        yield (
            f"`training.batch_size` {training.batch_size} cannot be shared by {workers} workers in micro-batches of "
            f"{size}. Way out: a multiple of {together}, or another `training.micro_batch` or `resources.workers`."
        )
    elif (augmentation.mixup or augmentation.cutmix) and size % 2:
        yield (
            f"mixup and CutMix pair the images of a micro-batch, and {size} is odd. Way out: an even "
            "`training.micro_batch`, or an even share of `training.batch_size` for each worker."
        )
