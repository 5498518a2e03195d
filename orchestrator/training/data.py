"""Batches of images, the same for any number of loader processes and workers.

Shapes: B images in the batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cluster.storage import StoreUnavailable
from orchestrator.errors import DataError
from orchestrator.training.order import EvaluationOrder, Key
from orchestrator.training.seeding import derive, preserved, seed_all
from orchestrator.training.sources import Images, open_images
from orchestrator.training.transforms import (
    ImageTransform,
    Normalize,
    erasing,
    evaluation_transform,
    fixed_transform,
    random_transform,
)
from specs.data import DataSpec
from specs.training import AugmentationSpec

CACHE_BYTES = 1 << 30
"""Memory for decoded images, over all loader processes of a worker."""

Batch = tuple[Tensor, Tensor]
"""Images [B, C, side, side] (float32, normalised) and labels [B] (int64)."""


class BatchSource(Dataset[Batch]):
    """Makes whole batches from keys. Decoded images are kept as long as there is room: decoding costs the most."""

    def __init__(
        self, images: Images, data: DataSpec, augmentation: AugmentationSpec | None, seed: int, cache_bytes: int
    ) -> None:
        self.images = images
        self.labels = torch.tensor(images.labels)
        self.seed = seed
        self.fixed: ImageTransform
        if augmentation is None:
            self.fixed, self.random, self.erase = evaluation_transform(data), None, None
        else:
            self.fixed = fixed_transform(data, augmentation)
            self.random, self.erase = random_transform(data, augmentation), erasing(augmentation)
        self.normalize = Normalize(data)
        self.kept: dict[int, np.ndarray] = {}
        self.room = cache_bytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[Key]) -> Batch | DataError:
        try:
            self._bring([i for _, i in keys])
            with preserved():
                pixels = np.stack([self._pixels(epoch, i) for epoch, i in keys])
                batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
                images = self.normalize(batch)
                if self.erase is not None:
                    for image, (epoch, i) in zip(images, keys, strict=True):
                        seed_all(derive(self.seed, "erase", epoch, i))
                        self.erase(image)
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error  # raised there, it would reach the user inside a traceback
        return images, self.labels[[i for _, i in keys]]

    def _bring(self, wanted: list[int]) -> None:
        """Fetch the images of a batch that lie elsewhere, side by side."""
        if self.images.bring is not None:
            try:
                self.images.bring([i for i in wanted if i not in self.kept])
            except StoreUnavailable as error:
                raise DataError(str(error)) from error

    def _pixels(self, epoch: int, i: int) -> np.ndarray:
        """Image i as it looks in this epoch [side, side, C] (uint8)."""
        pixels = self._decoded(i)
        if self.random is None:
            return pixels
        seed_all(derive(self.seed, "image", epoch, i))
        image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
        return _channels_last(self.random(image))

    def _decoded(self, i: int) -> np.ndarray:
        """Image i after the fixed part of its transform."""
        pixels = self.kept.get(i)
        if pixels is None:
            try:
                with self.images.read(i) as image:
                    pixels = _channels_last(self.fixed(image))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(
                    f"cannot read the image {self.images.where(i)}: {error}. Replace the file or take it away."
                ) from error
            if pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.kept[i] = pixels
        return pixels


def _channels_last(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


class Loader:
    """Batches on a device, in the order of a batch sampler.

    Raises:
        DataError: while iterating, if an image cannot be read; names the file.
    """

    def __init__(
        self, source: BatchSource, order: Iterable[list[Key]], num_processes: int, device: torch.device
    ) -> None:
        self.source, self.order, self.device = source, order, device
        self.loader: DataLoader[Any] = DataLoader(
            source,
            batch_sampler=order,
            num_workers=num_processes,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: it must not draw from the generator that dropout uses
        )

    @property
    def num_images(self) -> int:
        """Images in the split, over all workers."""
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _as_it_is(batch: Any) -> Any:
    return batch


def check_classes(images: Images, num_classes: int) -> None:
    """Raise `DataError` unless the images have the number of classes that was planned for."""
    if len(images.classes) != num_classes:
        raise DataError(
            f"the data has {len(images.classes)} classes, but the stage was planned for {num_classes}; "
            "the images have changed since: plan again"
        )


def check_tells_apart(images: Images) -> None:
    """Raise `DataError` if all validation images are of one class: any network that always says so would be right."""
    if len(set(images.labels)) < 2:
        raise DataError(
            f"all {len(images)} validation images are of the class `{images.classes[images.labels[0]]}`, on which an "
            "accuracy says nothing. Give at least one other class validation images, or raise `data.limit_val`."
        )


def training_loader(
    images: Images,
    data: DataSpec,
    augmentation: AugmentationSpec,
    order: Iterable[list[Key]],
    seed: int,
    device: torch.device,
) -> Loader:
    """Augmented training batches of one worker.

    Args:
        order: keys of each batch, for example a `TrainOrder`.
        seed: of the augmentation.
    """
    room = CACHE_BYTES // max(data.loader_workers, 1)
    return Loader(BatchSource(images, data, augmentation, seed, room), order, data.loader_workers, device)


def validation_loader(
    data: DataSpec, batch_size: int, device: torch.device, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """Validation batches of one worker; over all workers every image comes exactly once, in a fixed order.

    Args:
        batch_size: images a batch, on each worker.

    Raises:
        DataError: if the images are missing.
    """
    images = open_images(data, "val")
    order = EvaluationOrder(len(images), batch_size, rank, world_size)
    room = CACHE_BYTES // max(data.loader_workers, 1)
    return Loader(BatchSource(images, data, None, 0, room), order, data.loader_workers, device)
