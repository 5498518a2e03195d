"""The parametric function of SkipAt, which makes a block's attention from that of the block before.

Source: Venkataramanan et al. 2023, arXiv:2301.02240, section 3; efficient channel attention (ECA): Wang et al. 2020,
arXiv:1910.03151.

Shapes: R images, N tokens, P prefix tokens, n patches, D width, h·w patch grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.component.patch_grid import to_grid, to_tokens
from strategies.state import State

KERNEL = 5
"""Side of the depth-wise convolution, in patches."""
CHANNELS = 3
"""Neighbouring channels that ECA looks at."""


def channel_attention(x: Tensor, weight: Tensor) -> Tensor:
    """Scale each channel by a sigmoid of the means of its neighbours: x · σ(conv1d(mean over patches)).

    Args:
        x: [R, n, D].
        weight: of the convolution along the channels [1, 1, k], k odd; edges are padded with zeros.

    Returns:
        [R, n, D].
    """
    mean = x.mean(dim=1, keepdim=True)  # [R, 1, D]
    return x * F.conv1d(mean, weight.to(mean.dtype), padding=weight.shape[-1] // 2).sigmoid()


class Reuse(nn.Module):
    """Φ, at the attention seam of one block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, KERNEL, padding=KERNEL // 2, groups=2 * width)
        self.reduce = nn.Linear(2 * width, width)
        self.channels = nn.Conv1d(1, 1, CHANNELS, padding=CHANNELS // 2, bias=False)

    def forward(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """`state.attended` [R, N, D], what the block before put out → the same of this block; x is not read."""
        assert state.attended is not None, "the block before hands its attention on (`carry`)"
        P = state.num_prefix_tokens
        y = F.gelu(self.expand(state.attended[:, P:]))
        y = self.reduce(F.gelu(to_tokens(self.depthwise(to_grid(y)))))
        y = channel_attention(y, self.channels.weight)
        return torch.cat([state.attended[:, :P].to(y.dtype), y], dim=1)
