"""Patches as the picture that they are.

Shapes: R images, n patches, P prefix tokens, D channels, h rows, w columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def to_grid(patches: Tensor) -> Tensor:
    """Patches [R, n, D] of square images → [R, D, h, w] with h = w = √n; nothing is copied."""
    n = patches.shape[1]
    side = math.isqrt(n)
    assert side * side == n, "`claims` needs the whole grid, and images are square"
    return patches.transpose(1, 2).unflatten(2, (side, side))


def to_tokens(grid: Tensor) -> Tensor:
    """[R, D, h, w] → [R, h·w, D]."""
    return grid.flatten(2).transpose(1, 2)


def remove_position_embedding(model: Any) -> None:
    """Take the learned position embedding out of a timm `VisionTransformer`; a network that has none stays as it is."""
    if model.pos_embed is None:
        return
    if not hasattr(model, "dist_token"):
        model.pos_embed = None
        return
    # timm's distilled networks always add one: an unsaved zero.
    zero = torch.zeros_like(model.pos_embed[:, :1]).detach()
    del model.pos_embed
    model.register_buffer("pos_embed", zero, persistent=False)
