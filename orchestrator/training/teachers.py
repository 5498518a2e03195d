"""The teachers of a stage as one network: each sees the student's images as it is used to.

Shapes: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.planning.networks import is_published
from orchestrator.planning.plan import NetworkSource
from specs.data import DataSpec
from strategies.backbone import Output, Student


class View(nn.Module):
    """The student's images as another network is used to them: of its size, normalised by its mean and deviation.

    Both steps are linear in the pixels, so their order does not matter, and random erasing with the mean colour stays
    that. Bicubic resampling with antialiasing is what torchvision and PIL do to images of the data.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, side: int | None = None, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        """Say what changes.

        Args:
            side: pixels; `None` = as the images come.
            scale, shift: pixels ← pixels · scale + shift, per channel [1, C, 1, 1]; `None` = as they are.
        """
        super().__init__()
        self.side = side
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, height, width] → [B, C, side, side]."""
        if self.side is not None:
            size = (self.side, self.side)
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        return images


def view_of(network: Student, source: NetworkSource, data: DataSpec) -> View:
    """How a teacher sees the images.

    Published weights are used to the mean and deviation that timm lists with them (`pretrained_cfg`). A network with
    another number of channels than it was published with was adapted by timm, and keeps the data's normalisation, as
    networks do that were trained here.
    """
    published = getattr(network.model, "pretrained_cfg", {}) if is_published(source) else {}
    mean, std = list(published.get("mean") or data.mean), list(published.get("std") or data.std)
    if (mean, std) == (data.mean, data.std) or not len(mean) == len(std) == len(data.mean):
        return View(source.image_size)
    ours, theirs = (torch.tensor(pair).view(2, 1, -1, 1, 1) for pair in ([data.mean, data.std], [mean, std]))
    return View(source.image_size, scale=ours[1] / theirs[1], shift=(ours[0] - theirs[0]) / theirs[1])


class Teachers(nn.Module):
    """All teachers of a stage, frozen and in evaluation mode.

    Attributes:
        networks: the first teacher first.
        views: how each sees the images.
    """

    def __init__(self, networks: Sequence[Student], views: Sequence[View]) -> None:
        super().__init__()
        assert len(networks) == len(views) > 0, "a stage without teachers has no such network"
        self.networks = nn.ModuleList(networks)
        self.views = nn.ModuleList(views)
        self.eval()

    def forward(self, images: Tensor) -> Output:
        """Answers of the first teacher; those of the further ones are in its `others`.

        Args:
            images: [B, C, side, side], as the student sees them.
        """
        outputs: list[Output] = [teach(view(images)) for teach, view in zip(self.networks, self.views, strict=True)]
        outputs[0].others = tuple(outputs[1:])
        return outputs[0]
