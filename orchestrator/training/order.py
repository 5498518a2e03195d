"""Which image goes where: one global order, pinned by seed and epoch, that any number of workers share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.errors import DataError, SpecError
from orchestrator.training.seeding import derive

Key = tuple[int, int]
"""(epoch, image): all that an image's randomness depends on, besides the seed."""


@dataclass(frozen=True)
class TrainOrder:
    """Micro-batches of one worker, from step `start` to the end of the stage; a batch sampler.

    Step s takes the same images for any number of workers and accumulation steps: the global batch is cut into
    `accumulation · world_size` equal pieces, and micro-batch k of rank r is piece `k · world_size + r`. The last,
    incomplete batch of an epoch is left out.
    """

    num_images: int
    batch_size: int
    """Images an optimiser step, over all workers."""
    accumulation: int
    """Micro-batches an optimiser step, on each worker."""
    epochs: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    """Step to begin with."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return self.num_images // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the stage."""
        return self.steps_per_epoch * self.epochs

    def batch(self, step: int, order: np.ndarray | None = None) -> np.ndarray:
        """Images of the global batch of a step, in order."""
        order = self.permutation(step // self.steps_per_epoch) if order is None else order
        first = step % self.steps_per_epoch * self.batch_size
        return order[first : first + self.batch_size]

    def permutation(self, epoch: int) -> np.ndarray:
        """All images in the order of this epoch."""
        return np.random.Generator(np.random.PCG64(derive(self.seed, "order", epoch))).permutation(self.num_images)

    def __iter__(self) -> Iterator[list[Key]]:
        pieces, epoch, order = self.accumulation * self.world_size, -1, None
        size = self.batch_size // pieces
        for step in range(self.start, self.total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.permutation(epoch)
            batch = self.batch(step, order).tolist()
            for k in range(self.accumulation):
                first = (k * self.world_size + self.rank) * size
                yield [(epoch, i) for i in mirrored(batch[first : first + size])]

    def __len__(self) -> int:
        return (self.total_steps - self.start) * self.accumulation


def mirrored(images: list[int]) -> list[int]:
    """Put neighbours 2i and 2i + 1 at opposite ends.

    timm mixes an image with the one at the mirrored position of its batch. So who is mixed with whom depends on the
    global order alone, not on how the batch is cut into pieces.
    """
    return images[0::2] + images[1::2][::-1]


@dataclass(frozen=True)
class EvaluationOrder:
    """Every image once over all workers: rank r takes r, r + world_size, …; a batch sampler."""

    num_images: int
    batch_size: int
    """Images a batch, on each worker."""
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        own = range(self.rank, self.num_images, self.world_size)
        for first in range(0, len(own), self.batch_size):
            yield [(0, i) for i in own[first : first + self.batch_size]]

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.num_images, self.world_size)) // self.batch_size)


def accumulation_steps(batch_size: int, micro_batch: int | None, world_size: int, mixing: bool) -> int:
    """Micro-batches an optimiser step, on each worker.

    Raises:
        SpecError: if the global batch cannot be cut into equal pieces (of even size, with mixup or CutMix).
    """
    size = micro_batch or max(batch_size // world_size, 1)
    if batch_size % (size * world_size):
        raise SpecError(
            f"`training.batch_size` {batch_size} cannot be shared by {world_size} workers in micro-batches of {size}; "
            f"make it a multiple of {size * world_size}, or change `training.micro_batch` or `resources.workers`"
        )
    if mixing and size % 2:
        raise SpecError(
            f"mixup and CutMix pair the images of a micro-batch, and {size} is odd; "
            "make `training.micro_batch` (or `batch_size` over the number of workers) even"
        )
    return batch_size // (size * world_size)


def check_fits(num_images: int, batch_size: int) -> None:
    """Raise `DataError` unless the images fill at least one batch."""
    if num_images < batch_size:
        raise DataError(
            f"there are {num_images} training images, fewer than `training.batch_size` {batch_size}; "
            f"lower it to {num_images} or less, or raise `data.limit_train`"
        )
