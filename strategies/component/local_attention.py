"""Attention within windows of a patch grid, with prefix tokens that see and are seen by all.

Source: the non-overlapping windows of Li et al. 2022, arXiv:2203.16527, section 3 (no shifting). Prefix tokens are our
addition: ViTDet has none.

Shapes: R images, H heads, E head width, P prefix tokens, n = h·w patches, N = P + n, w² patches in a window.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.attention import Rotate, project, put_out
from strategies.state import State


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], window: int, dropout: float = 0.0
) -> Tensor:
    """Attention of every patch over its window and the prefix tokens, and of prefix tokens over all.

    Args:
        q, k, v: [R, H, P + h·w, E], prefix tokens first.
        grid: (h, w); where a side is no multiple of the window, the last windows are smaller.
        window: side of a window, in patches.
        dropout: of attention weights.

    Returns:
        [R, H, P + h·w, E].
    """
    P = q.shape[2] - grid[0] * grid[1]
    pictures = [t[:, :, P:].unflatten(2, grid) for t in (q, k, v)]
    prefix_keys = (k[:, :, :P], v[:, :, :P])
    rows = []
    for down in _spans(grid[0], window):
        parts = []
        for across in _spans(grid[1], window):
            region = [t[:, :, down.start : down.stop, across.start : across.stop] for t in pictures]
            parts.append(_region(region, prefix_keys, (down.step, across.step), dropout))
        rows.append(torch.cat(parts, dim=3))
    patches = torch.cat(rows, dim=2).flatten(2, 3)
    if P == 0:
        return patches
    prefix = F.scaled_dot_product_attention(q[:, :, :P], k, v, dropout_p=dropout)
    return torch.cat([prefix, patches], dim=2)


def _spans(side: int, window: int) -> list[range]:
    """A side cut into whole windows and what is left: ranges whose steps are the windows' sides."""
    whole = side // window * window
    spans = [range(0, whole, window), range(whole, side, side - whole or 1)]
    return [span for span in spans if len(span)]


def _region(qkv: list[Tensor], prefix_keys: tuple[Tensor, Tensor], size: tuple[int, int], dropout: float) -> Tensor:
    """Attention in a part of the picture that windows of one size fill.

    Args:
        qkv: three of [R, H, rows, columns, E].
        prefix_keys: keys and values that every window sees, [R, H, P, E] each.
        size: rows and columns of a window; they divide those of the part.

    Returns:
        [R, H, rows, columns, E].
    """
    R, _, rows, columns, _ = qkv[0].shape
    down, across = rows // size[0], columns // size[1]

    def windows(t: Tensor) -> Tensor:  # [R, down · across, H, rows · columns of a window, E]
        t = t.unflatten(3, (across, size[1])).unflatten(2, (down, size[0]))
        return t.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)

    def with_prefix(t: Tensor, prefix: Tensor) -> Tensor:
        return torch.cat([prefix.unsqueeze(1).expand(-1, down * across, -1, -1, -1), windows(t)], dim=3).flatten(0, 1)

    q, k, v = qkv
    keys, values = with_prefix(k, prefix_keys[0]), with_prefix(v, prefix_keys[1])
    y = F.scaled_dot_product_attention(windows(q).flatten(0, 1), keys, values, dropout_p=dropout)
    y = y.unflatten(2, size).unflatten(0, (R, down, across))  # [R, down, across, H, rows, columns, E]
    return y.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)


class Windows:
    """The attention seam of one block."""

    def __init__(self, window: int, block: int, rotate: dict[int, Rotate]) -> None:
        """`rotate` is the student's, looked up in each pass: whoever fills it may come later."""
        self.window, self.block, self.rotate = window, block, rotate

    def __call__(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """Attend within windows; x is [R, N, D], on the whole grid."""
        q, k, v = project(attn, x)
        if self.block in self.rotate:
            q, k = self.rotate[self.block](q, k, state)
        side = math.isqrt(x.shape[1] - state.num_prefix_tokens)
        dropout = attn.attn_drop.p if attn.training else 0.0
        return put_out(attn, window_attention(q, k, v, (side, side), self.window, dropout), x)
