"""Efficient additive attention: one pooled query meets every key.

Source: Shaker et al. 2023, "SwiftFormer", arXiv:2303.15446, equations 5 to 7. Where the equations leave
normalisation open, the authors' published code decides.

Shapes: R images, N tokens, T tokens of all images packed, D width, A = heads · head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies import ragged
from strategies.component.kernel_attention import key_weight
from strategies.state import State


def pooled_query(query: Tensor, w: Tensor, weight: Tensor | None = None) -> Tensor:
    """q = Σ_i α_i Q̂_i, with α = Q̂·w/√A scaled to Euclidean length 1 over the tokens.

    Args:
        query: Q̂, rows of length 1 [R, N, A].
        w: learned [A].
        weight: how often each token counts [R, N, 1], 0 = not at all; `None` = once.

    Returns:
        [R, 1, A], float32.
    """
    query = query.float()
    alpha = (query * w.float()).sum(dim=-1, keepdim=True) * query.shape[-1] ** -0.5  # [R, N, 1]
    count = torch.ones_like(alpha) if weight is None else weight.float()
    length = (count * alpha.square()).sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return (count * alpha / length * query).sum(dim=1, keepdim=True)


def linear_of(layer: nn.Linear, rows: slice) -> nn.Linear:
    """A linear layer of its own, with some outputs of another."""
    weight, bias = layer.weight[rows], None if layer.bias is None else layer.bias[rows]
    own = nn.Linear(weight.shape[1], len(weight), bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        own.weight.copy_(weight)
        if bias is not None:
            own.bias.copy_(bias)
    return own


class Additive(nn.Module):
    """The attention seam of one block. Takes queries, keys and projection over from timm's attention."""

    def __init__(self, attn: Any) -> None:
        """`attn` is a timm `Attention`; nothing of it is kept, its weights are copied."""
        super().__init__()
        width, like = attn.attn_dim, attn.qkv.weight
        self.query = linear_of(attn.qkv, slice(width))
        self.key = linear_of(attn.qkv, slice(width, 2 * width))
        self.w = nn.Parameter(torch.randn(width).to(like))
        self.transform = nn.Linear(width, width, device=like.device, dtype=like.dtype)
        self.proj = linear_of(attn.proj, slice(None))
        nn.init.eye_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)
        self.drop = nn.Dropout(attn.proj_drop.p)

    def forward(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """x is [R, N, D] or packed [1, T, D]; what stands in the attention's place is not used."""
        query, key = F.normalize(self.query(x), dim=-1), F.normalize(self.key(x), dim=-1)
        weight = key_weight(state)
        if state.lengths is None:
            pooled = pooled_query(query, self.w, weight)
        else:
            counts = query.new_ones(1, query.shape[1], 1) if weight is None else weight.to(query.dtype)
            filled, _ = ragged.pad(torch.cat([query, counts], dim=-1), state.lengths)
            each = pooled_query(filled[..., :-1], self.w, filled[..., -1:])  # [R, 1, A]
            pooled = each.squeeze(1).repeat_interleave(state.lengths, dim=0).unsqueeze(0)
        y: Tensor = self.drop(self.proj(self.transform(pooled.to(key.dtype) * key) + query))
        return y
