"""From a decoded image to what the network sees: a fixed part, a random part, normalisation, erasing.

The parts are apart because each runs elsewhere: the fixed part once an image (its result may be kept), the random
part once an image and epoch, the normalisation once a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from orchestrator.errors import DataError, SpecError
from specs.data import DataSpec
from specs.training import AugmentationSpec

ImageTransform = Callable[[Image.Image], Image.Image]
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Channels of the network → colour mode of the image."""


class Normalize:
    """uint8 images [B, C, side, side] → float32, minus mean, over standard deviation (both per channel)."""

    def __init__(self, data: DataSpec) -> None:
        if len(data.mean) != len(data.std):
            raise DataError(f"`data.mean` has {len(data.mean)} channels and `data.std` has {len(data.std)}")
        if min(data.std) <= 0:
            raise DataError(f"`data.std` is {data.std}; every value must be above 0")
        self.mean = torch.tensor(data.mean).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(data.std).view(1, -1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return images.float().sub_(self.mean).div_(self.std)


def evaluation_transform(data: DataSpec) -> ImageTransform:
    """Resize the shorter side to `image_size / crop_pct`, then cut out the centre."""
    return _fixed(data, round(data.image_size / data.crop_pct))


def fixed_transform(data: DataSpec, augmentation: AugmentationSpec) -> ImageTransform:
    """What happens to a training image before anything random: with a random crop, only the colour mode."""
    if augmentation.crop_scale is not None:
        return _ToMode(data)
    return _fixed(data, data.image_size)


def random_transform(data: DataSpec, augmentation: AugmentationSpec) -> ImageTransform | None:
    """The random part of a training image's transform, of timm's and torchvision's pieces; `None` if there is none.

    Raises:
        SpecError: if timm does not understand the policy string.
    """
    a, side = augmentation, data.image_size
    pieces: list[Any] = []
    if a.crop_scale is not None:
        scale = (a.crop_scale[0], a.crop_scale[1])
        pieces.append(RandomResizedCropAndInterpolation(side, scale=scale, interpolation=data.interpolation))
    if a.crop_padding:
        pieces.append(transforms.RandomCrop(side, padding=a.crop_padding))
    if a.hflip:
        pieces.append(transforms.RandomHorizontalFlip(a.hflip))
    if a.auto_augment is not None:
        pieces.append(_policy(a.auto_augment, data))
    if a.color_jitter:
        pieces.append(transforms.ColorJitter(a.color_jitter, a.color_jitter, a.color_jitter))
    return transforms.Compose(pieces) if pieces else None


def erasing(augmentation: AugmentationSpec) -> RandomErasing | None:
    """Random erasing of a normalised image [C, side, side], in place, with the mean colour; `None` if off."""
    return RandomErasing(augmentation.random_erasing, device="cpu") if augmentation.random_erasing else None


class _ToMode:
    """Convert to the colour mode that has as many channels as the data's mean."""

    def __init__(self, data: DataSpec) -> None:
        self.mode = MODES[len(data.mean)]

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)


def _fixed(data: DataSpec, resized: int) -> ImageTransform:
    size = data.image_size
    transform: ImageTransform = transforms.Compose(
        [
            _ToMode(data),
            transforms.Resize(resized, interpolation=InterpolationMode(data.interpolation)),
            transforms.CenterCrop(size),
        ]
    )
    return transform


def _policy(text: str, data: DataSpec) -> Any:
    """timm's automatic augmentation from its policy string."""
    mean = tuple(min(255, round(255 * m)) for m in data.mean)
    params: dict[str, Any] = {
        "translate_const": int(data.image_size * 0.45),
        "img_mean": mean if len(mean) > 1 else mean[0],
        "interpolation": str_to_pil_interp(data.interpolation),
    }
    try:
        if text.startswith("rand"):
            return rand_augment_transform(text, params)
        if text.startswith("augmix"):
            return augment_and_mix_transform(text, params | {"translate_pct": 0.3})
        return auto_augment_transform(text, params)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise SpecError(
            f"`training.augmentation.auto_augment`: timm does not understand `{text}` ({error!r}). "
            "Write for example `rand-m9-mstd0.5-inc1`, `augmix-m5-w4-d2`, `original`, or `null`."
        ) from error
