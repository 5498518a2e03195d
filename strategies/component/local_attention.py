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
        grid: (h, w); where a side is no multiple of the window, the last windows are filled up and the filling masked.
        window: side of a window, in patches.
        dropout: of attention weights.

    Returns:
        [R, H, P + h·w, E].
    """
    P = q.shape[2] - grid[0] * grid[1]
    qw, kw, vw = (_windows(t[:, :, P:], grid, window) for t in (q, k, v))
    num = qw.shape[1]

    def in_every_window(t: Tensor) -> Tensor:
        return t[:, :, :P].unsqueeze(1).expand(-1, num, -1, -1, -1)

    keys, values = torch.cat([in_every_window(k), kw], dim=3), torch.cat([in_every_window(v), vw], dim=3)
    mask = _mask(grid, window, P, q.device)
    if mask is not None:
        mask = mask.expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
    y = F.scaled_dot_product_attention(
        qw.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), attn_mask=mask, dropout_p=dropout
    )
    patches = _picture(y.unflatten(0, (q.shape[0], num)), grid, window)
    if P == 0:
        return patches
    prefix = F.scaled_dot_product_attention(q[:, :, :P], k, v, dropout_p=dropout)
    return torch.cat([prefix, patches], dim=2)


def _filled(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """Windows down and across."""
    return math.ceil(grid[0] / window), math.ceil(grid[1] / window)


def _windows(t: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """[R, H, h·w, E] → [R, windows, H, window², E], filled up with zeros."""
    (h, w), (down, across) = grid, _filled(grid, window)
    t = t.unflatten(2, grid)
    if (h, w) != (down * window, across * window):
        t = F.pad(t, (0, 0, 0, across * window - w, 0, down * window - h))
    t = t.unflatten(3, (across, window)).unflatten(2, (down, window))  # [R, H, down, window, across, window, E]
    return t.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)


def _picture(y: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """[R, windows, H, window², E] → [R, H, h·w, E], without the filling."""
    y = y.unflatten(3, (window, window)).unflatten(1, _filled(grid, window))
    y = y.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return y[:, :, : grid[0], : grid[1]].flatten(2, 3)


def _mask(grid: tuple[int, int], window: int, num_prefix: int, device: torch.device) -> Tensor | None:
    """Which keys each window may see [1, windows, 1, 1, P + window²] (bool); `None` where nothing was filled up."""
    (h, w), (down, across) = grid, _filled(grid, window)
    if (h, w) == (down * window, across * window):
        return None
    real = _windows(torch.ones(1, 1, h * w, 1, device=device), grid, window)  # [1, windows, 1, window², 1]
    return F.pad(real.squeeze(-1).unsqueeze(-2) > 0, (num_prefix, 0), value=True)


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
