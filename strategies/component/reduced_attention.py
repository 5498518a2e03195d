"""Attention whose keys and values come from a coarser picture.

Source: Wang et al. 2021, "Pyramid Vision Transformer", arXiv:2102.12122, equations 1 to 3.

Shapes: R images, N tokens, P prefix tokens, M = P + reduced patches, D width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.attention import Rotate, put_out
from strategies.component.patch_grid import to_grid, to_tokens
from strategies.factors import some_outputs
from strategies.state import State


class Reduction(nn.Module):
    """SR: every ratio × ratio patches become one, by a convolution and LayerNorm."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(width, width, ratio, stride=ratio)
        self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            mean = torch.eye(width) / ratio**2
            self.conv.weight.copy_(mean[:, :, None, None].expand_as(self.conv.weight))
            self.conv.bias.zero_()  # type: ignore[union-attr]  # a Conv2d has a bias by default

    def forward(self, x: Tensor, num_prefix_tokens: int) -> Tensor:
        """[R, N, D] → [R, M, D]: prefix tokens as they are, then the reduced patches, filled up with zeros."""
        picture = to_grid(x[:, num_prefix_tokens:])
        down, across = (-side % self.ratio for side in picture.shape[-2:])
        if down or across:
            picture = F.pad(picture, (0, across, 0, down))
        reduced = self.norm(to_tokens(self.conv(picture)))
        return torch.cat([x[:, :num_prefix_tokens].to(reduced.dtype), reduced], dim=1)

    def positions(self, position: Tensor, num_prefix_tokens: int) -> Tensor:
        """Rows and columns of the reduced tokens [R, M, 2]: the middle of their patches, filling included.

        Args:
            position: of all tokens [R, N, 2].
        """
        picture = to_grid(position[:, num_prefix_tokens:])
        middle = picture[:, :, :: self.ratio, :: self.ratio] + (self.ratio - 1) / 2
        return torch.cat([position[:, :num_prefix_tokens], to_tokens(middle)], dim=1)


class ReducedAttention:
    """The attention seam of one block."""

    def __init__(self, reduction: Reduction, block: int, rotate: dict[int, Rotate]) -> None:
        """`rotate` is the student's, looked up in each pass: whoever fills it may come later."""
        self.reduction, self.block, self.rotate = reduction, block, rotate

    def __call__(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """Every token of x [R, N, D] attends to the prefix tokens and the reduced patches."""
        P, width = state.num_prefix_tokens, attn.attn_dim
        coarse = self.reduction(x, P)

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)

        # Queries and keys read different tokens.
        q = heads(some_outputs(attn.qkv, x, slice(width)))
        k, v = some_outputs(attn.qkv, coarse, slice(width, None)).chunk(2, dim=-1)
        q, k, v = attn.q_norm(q), attn.k_norm(heads(k)), heads(v)
        if self.block in self.rotate:
            turn = self.rotate[self.block]
            assert state.position is not None, "who turns queries and keys says where tokens are"
            there = replace(state, x=coarse, position=self.reduction.positions(state.position, P))
            q, k = turn(q, q, state)[0], turn(k, k, there)[1]
        dropout = attn.attn_drop.p if attn.training else 0.0
        return put_out(attn, F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), x)
