"""Cut a Vision Transformer's blocks to pruned shapes, so that pruned weights can be loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def narrow_linear(
    layer: nn.Linear, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> nn.Linear:
    """A new linear layer with some outputs (rows) and inputs (columns) of another; index tensors, int64."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if rows is not None:
        weight, bias = weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)
    if columns is not None:
        weight = weight.index_select(1, columns)
    # On the meta device first: initialisation would draw from the random numbers that training is to see.
    cut = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    cut = cut.to_empty(device=weight.device)
    with torch.no_grad():
        cut.weight.copy_(weight)
        if bias is not None:
            cut.bias.copy_(bias)
    return cut


def keep_heads(attn: Any, heads: torch.Tensor) -> None:
    """Physically keep some heads of a timm `Attention` (int64 indices, at least one); the head width stays."""
    assert type(attn.norm) is nn.Identity, "a norm over the heads would have to be cut too (ModelFacts.can_prune)"
    E, H = attn.head_dim, attn.num_heads
    device = attn.qkv.weight.device
    channels = (heads.to(device)[:, None] * E + torch.arange(E, device=device)).flatten()
    rows = torch.cat([part * H * E + channels for part in range(3)])
    attn.qkv = narrow_linear(attn.qkv, rows=rows)
    attn.proj = narrow_linear(attn.proj, columns=channels)
    attn.num_heads, attn.attn_dim = len(heads), len(heads) * E


def keep_channels(mlp: Any, channels: torch.Tensor) -> None:
    """Physically keep some hidden channels of a timm `Mlp` (int64 indices, at least one)."""
    channels = channels.to(mlp.fc1.weight.device)
    assert type(mlp.norm) is nn.Identity, "a norm over the channels would have to be cut too (ModelFacts.can_prune)"
    mlp.fc1, mlp.fc2 = narrow_linear(mlp.fc1, rows=channels), narrow_linear(mlp.fc2, columns=channels)


def reshape(model: Any, shapes: dict[int, tuple[int, int]]) -> None:
    """Cut blocks to (heads, MLP width); which ones are kept does not matter, weights are loaded afterwards."""
    for block, (num_heads, hidden) in shapes.items():
        keep_heads(model.blocks[block].attn, torch.arange(num_heads))
        keep_channels(model.blocks[block].mlp, torch.arange(hidden))
