"""Compare features of two networks on one patch grid, as pure functions.

Shapes: B images, P prefix tokens, n = h·w patches, D width, k = 1 with class token and 0 without.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_size(features: Tensor, num_prefix_tokens: int) -> tuple[int, int]:
    """Height and width of the patch grid of tokens [B, P + n, D] (square), or of a feature map [B, D, h, w]."""
    if features.dim() == 4:
        return features.shape[2], features.shape[3]
    patches = features.shape[1] - num_prefix_tokens
    side = math.isqrt(patches)
    assert side * side == patches, f"{patches} patches are no square grid"
    return side, side


def grid_tokens(
    features: Tensor, num_prefix_tokens: int, *, class_token: bool = False, size: tuple[int, int] | None = None
) -> Tensor:
    """Patch tokens on a grid of a given size, row by row, behind the class token if asked.

    Args:
        features: tokens [B, P + n, D], the class token first, or a feature map [B, D, h, w].
        num_prefix_tokens: P; a feature map has none.
        class_token: whether to keep the class token.
        size: (height, width) to resample the patches to, bilinearly; `None` = as they are.

    Returns:
        [B, k + height·width, D].
    """
    here = grid_size(features, num_prefix_tokens)
    if features.dim() == 4:
        assert not class_token, "a feature map has no class token"
        prefix, patches = [], features
    else:
        prefix = [features[:, :1]] if class_token else []
        patches = to_map(features[:, num_prefix_tokens:], here)
    if size is not None and size != here:
        patches = F.interpolate(patches, size=size, mode="bilinear", align_corners=False)
    tokens = patches.flatten(2).transpose(1, 2)
    return torch.cat([*prefix, tokens], dim=1) if prefix else tokens


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Patch tokens [B, h·w, D], row by row, as a feature map [B, D, h, w]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def distance(kind: Literal["mse", "cosine", "l1"], ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean distance of two sets of tokens [B, N, D], in float32.

    `mse` and `l1` are means over all elements; `cosine` is the mean over tokens of 1 − cos(ours, theirs).

    Returns:
        Scalar.
    """
    ours, theirs = ours.float(), theirs.float()
    if kind == "mse":
        return F.mse_loss(ours, theirs)
    if kind == "l1":
        return F.l1_loss(ours, theirs)
    return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()
