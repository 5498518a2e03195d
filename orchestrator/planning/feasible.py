"""What keeps a stage from training that shows before any worker starts: its batches and its precision."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.planning.environment import training_device
from specs.resources import ResourcesSpec
from specs.training import TrainingSpec


def obstacles(training: TrainingSpec, resources: ResourcesSpec) -> Iterator[str]:
    """Every reason, each with the way out. Workers check the same again with what they really find."""
    if training.precision == "fp16" and training_device(resources) == "cpu":
        yield (
            "`training.precision: fp16` needs a GPU. Way out: `bf16` or `fp32`, or `resources.gpus_per_worker` above 0."
        )
    size = training.micro_batch or max(training.batch_size // resources.workers, 1)
    together = size * resources.workers
    augmentation = training.augmentation
    if training.batch_size % together:
        yield (
            f"`training.batch_size` {training.batch_size} cannot be shared by {resources.workers} workers in "
            f"micro-batches of {size}. Way out: a multiple of {together}, or another `training.micro_batch` or "
            "`resources.workers`."
        )
    elif (augmentation.mixup or augmentation.cutmix) and size % 2:
        yield (
            f"mixup and CutMix pair the images of a micro-batch, and {size} is odd. Way out: an even "
            "`training.micro_batch`, or an even share of `training.batch_size` for each worker."
        )
