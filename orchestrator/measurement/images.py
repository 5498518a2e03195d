"""Images to measure on. Shapes: B images, C channels."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.errors import DataError
from orchestrator.training.data import BatchSource
from orchestrator.training.sources import open_images
from specs.data import DataSpec


def validation_images(data: DataSpec, num: int) -> Tensor:
    """Validation images as the network sees them, evenly spaced over the whole set and in its order.

    The first images of a folder would all be of the first classes.

    Returns:
        [B, C, side, side] (float32, normalised); B is `num`, or fewer if there are fewer.

    Raises:
        DataError: if images are missing or cannot be read.
    """
    images = open_images(data, "val")
    num = min(num, len(images))
    chosen = images.select([i * len(images) // num for i in range(num)])
    batch = BatchSource(chosen, data, None, 0, 0).__getitems__([(0, i) for i in range(num)])
    assert not isinstance(batch, DataError), "in this process it is raised"
    return batch[0]


def random_images(num: int, shape: tuple[int, int, int]) -> Tensor:
    """Noise [num, *shape], always the same."""
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))
