"""Mixup and CutMix, the same for any number of workers and accumulation steps.

Shapes: B images in the micro-batch, C classes.
"""

from __future__ import annotations

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor

from orchestrator.training.seeding import derive
from specs.training import TrainingSpec


class Mixing:
    """timm's `Mixup` with randomness from (seed, step): every micro-batch of a step is mixed by the same share and
    box, and `order.mirrored` sees to it that the pairs are the same, too."""

    def __init__(self, training: TrainingSpec, num_classes: int, seed: int) -> None:
        a = training.augmentation
        self.seed = seed
        self.on = bool(a.mixup or a.cutmix)
        self.mixup = Mixup(
            mixup_alpha=a.mixup,
            cutmix_alpha=a.cutmix,
            prob=a.mix_probability,
            switch_prob=a.mix_switch_probability,
            label_smoothing=training.label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix images [B, …] in place; gives class probabilities [B, C], smoothed. When off: what came in."""
        if not self.on:
            return images, labels
        np.random.seed(derive(self.seed, "mix", step) & 0xFFFFFFFF)
        mixed: tuple[Tensor, Tensor] = self.mixup(images, labels)
        return mixed
