"""What keeps a stage from training that shows before any worker starts: its precision, its batches, its workers.

What the spec alone decides is refused by the plan. How many workers share a batch is no part of a result, so a finished
spec stays good whatever `resources` says: that is refused only where something is to run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from orchestrator.planning.environment import training_device
from orchestrator.planning.plan import Plan, TrainStage
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


def cannot_start(plan: Plan, to_run: Collection[str], resources: ResourcesSpec) -> list[str]:
    """Why stages that are to run cannot be shared by the workers that `resources` gives them; each reason once."""
    if worker_counts(plan, to_run, resources):
        return []
    reasons = {
        f"stage `{stage.label.partition('[')[0]}`: {reason}": None
        for digest, stage in plan.stages.items()
        if digest in to_run and isinstance(stage, TrainStage)
        for reason in _not_shared(stage.training, resources.most_workers)
    }
    if reasons or isinstance(resources.workers, int):
        return list(reasons)
    return [
        f"no number of workers from {resources.fewest_workers} to {resources.most_workers} shares the batches of all "
        "stages. Way out: a wider `resources.workers`, or batch sizes with more divisors in common."
    ]


def worker_counts(plan: Plan, to_run: Collection[str], resources: ResourcesSpec) -> tuple[int, ...]:
    """Numbers of workers, most first, that `resources` allows and that share the batches of what is to run."""
    stages = [stage for digest, stage in plan.stages.items() if digest in to_run and isinstance(stage, TrainStage)]
    allowed = range(resources.most_workers, resources.fewest_workers - 1, -1)
    return tuple(n for n in allowed if not any(any(_not_shared(stage.training, n)) for stage in stages))


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
