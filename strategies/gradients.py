"""Gradients of the loss over some images, as importance reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """By the timm network's parameter names; shaped like the parameters, float32."""

    mean: Mapping[str, Tensor]
    """∂L/∂w, L being the mean loss over all calibration images."""
    square: Mapping[str, Tensor]
    """Mean of (∂L_m/∂w)² over micro-batches m of B images. Its noise is 1/B of the diagonal of the empirical Fisher
    matrix, E[(∂L/∂w)²] over single images, which it is for B = 1 (`training.micro_batch: 1`)."""
