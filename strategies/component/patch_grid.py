"""Patches as the picture that they are.

Shapes: R images, n patches, P prefix tokens, D channels, h rows, w columns.
"""

from __future__ import annotations

import math
from typing import Any

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


def refuse_patch_drop(strategy: str, model: Any) -> None:
    """Raise `ValueError` if the network drops patches at random in training: the others would lose their places."""
    if getattr(getattr(model, "patch_drop", None), "prob", 0.0):
        raise ValueError(
            f"{strategy}: the student drops patches at random in training (`patch_drop_rate`), so its patches have no "
            "places. Way out: `patch_drop_rate: 0` in the student's `args`."
        )
