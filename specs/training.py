"""The training schedule of one stage."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from specs.base import SpecModel

Fraction = Annotated[float, Field(ge=0, le=1)]


_NUMBER = r"\d+(\.\d+)?"
_POLICY = (
    rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t\w+))*"
    rf"|augmix(-(m\d+|w\d+|d\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}))*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
)
"""Policy strings that timm's automatic augmentation reads: a policy, then its options, joined by `-`."""


class OptimizerSpec(SpecModel):
    """Built by timm's `create_optimizer_v2`; biases, norms and position embeddings get no weight decay."""

    name: Literal["adamw", "sgd", "nadamw", "lamb", "lion"] = "adamw"
    """Optimiser in timm's naming; `sgd` is with Nesterov momentum."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate for the stated global batch; not rescaled."""

    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay."""

    momentum: Fraction = 0.9
    """Momentum of `sgd`; ignored by the others."""

    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = None
    """Moment decay rates of the Adam family; `null` = the optimiser's default."""

    eps: PositiveFloat | None = None
    """Denominator offset of the Adam family; `null` = the optimiser's default."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate factor from each block to the one before it; `null` = the same rate everywhere."""


class ScheduleSpec(SpecModel):
    """Learning rate over time, stepped at every optimiser step, by timm's schedulers."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""

    warmup_epochs: NonNegativeFloat = 0.0
    """Linear rise from `warmup_lr`, in epochs (fractions allowed)."""

    warmup_lr: NonNegativeFloat = 1e-6
    """Learning rate at the first step of the warm-up."""

    min_lr: NonNegativeFloat = 1e-5
    """Learning rate at the end."""


class AugmentationSpec(SpecModel):
    """timm's training transforms. Each image's randomness depends on seed, epoch and image alone."""

    crop_scale: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None
    """Area range of the random resized crop, as shares of the image; `null` = no crop, only a resize."""

    crop_padding: NonNegativeInt = 0
    """Pixels of zero padding before a random crop back to size (the usual 4 on CIFAR); 0 = off."""

    hflip: Fraction = 0.0
    """Probability of a horizontal flip."""

    color_jitter: NonNegativeFloat = 0.0
    """Strength of brightness, contrast and saturation jitter; 0 = off."""

    auto_augment: str | None = None
    """timm's policy string, for example `rand-m9-mstd0.5-inc1`; `null` = off."""

    random_erasing: Fraction = 0.0
    """Probability of erasing a random rectangle."""

    mixup: NonNegativeFloat = 0.0
    """Beta parameter of mixup (arXiv:1710.09412); 0 = off."""

    cutmix: NonNegativeFloat = 0.0
    """Beta parameter of CutMix (arXiv:1905.04899); 0 = off."""

    mix_probability: Fraction = 1.0
    """Probability that a batch is mixed, when mixup or CutMix is on."""

    mix_switch_probability: Fraction = 0.5
    """Probability of CutMix rather than mixup, when both are on."""

    @field_validator("auto_augment")
    @classmethod
    def _is_a_policy(cls, policy: str | None) -> str | None:
        if policy is not None and not re.fullmatch(_POLICY, policy):
            raise ValueError(
                f"timm has no policy `{policy}`; write for example `rand-m9-mstd0.5-inc1`, `augmix-m5-w4-d2`, "
                "`original-mstd0.5`, or `null`"
            )
        return policy

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> AugmentationSpec:
        if self.crop_scale is not None and not 0 < self.crop_scale[1] >= self.crop_scale[0]:
            raise ValueError("`crop_scale` is the smallest and the largest share, in that order, and not both 0")
        return self


class TrainingSpec(SpecModel):
    """How a stage trains. A stage of 0 epochs only assembles the network (training-free strategies)."""

    epochs: NonNegativeInt = 1
    """Passes over the training images."""

    batch_size: PositiveInt = 64
    """Global batch: images an optimiser step, over all workers and accumulation steps."""

    micro_batch: PositiveInt | None = None
    """Images a forward pass a worker; gradients accumulate up to `batch_size`. `null` = the worker's whole share."""

    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """Optimiser."""

    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    """Learning rate schedule."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type; `fp16` uses a gradient scaler and needs a GPU."""

    compile: bool = False
    """Run student and teacher through `torch.compile`; needs a C++ compiler (`g++`) on every node."""

    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, then evaluated and saved instead; `null` = off."""

    clip_grad: PositiveFloat | None = None
    """Largest global gradient norm; `null` = no clipping."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the task loss."""

    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)
    """Training-time augmentation."""

    eval_every: PositiveInt = 1
    """Epochs between two passes over the validation images (always one after the last epoch)."""

    checkpoint_every_steps: PositiveInt | None = None
    """Optimiser steps between two checkpoints to resume from, besides the one after each epoch."""

    def images_at_once(self, workers: int) -> int:
        """Images of one forward pass of each worker."""
        return self.micro_batch or max(self.batch_size // workers, 1)

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingSpec:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"`batch_size` {self.batch_size} is no multiple of `micro_batch` {self.micro_batch}")
        if self.schedule.warmup_epochs > max(self.epochs, 0) and self.epochs > 0:
            raise ValueError(f"the warm-up of {self.schedule.warmup_epochs} epochs outlasts {self.epochs} epochs")
        return self
