"""How much the heads and MLP channels of a block matter, as pure functions of its weights.

A group is what leaves the network together. Its importance is the root mean square of its weights: the L2 norm over the
square root of the group's size, so that a head and a channel can be compared.

Shapes: H heads, E head width, D width, M MLP channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def head_magnitude(attn: Any) -> Tensor:
    """Importance of each head [H], float32.

    A head's group: its E rows (and biases) of query, key and value, and its E columns of the projection. The bias of
    the projection belongs to all heads.

    Args:
        attn: timm `Attention`; `qkv.weight` is [3·H·E, D], `proj.weight` is [D, H·E].
    """
    H = attn.num_heads
    parts = [
        attn.qkv.weight.view(3, H, -1).transpose(0, 1),
        attn.proj.weight.view(-1, H, attn.head_dim).transpose(0, 1),
    ]
    if attn.qkv.bias is not None:
        parts.append(attn.qkv.bias.view(3, H, -1).transpose(0, 1))
    return _root_mean_square(parts)


def channel_magnitude(mlp: Any) -> Tensor:
    """Importance of each MLP channel [M], float32.

    A channel's group: its row (and bias) of the first layer, and its column of the second.

    Args:
        mlp: timm `Mlp`; `fc1.weight` is [M, D], `fc2.weight` is [D, M].
    """
    parts = [mlp.fc1.weight, mlp.fc2.weight.t()]
    if mlp.fc1.bias is not None:
        parts.append(mlp.fc1.bias.unsqueeze(1))
    return _root_mean_square(parts)


def _root_mean_square(parts: list[Tensor]) -> Tensor:
    """Over everything but the first dimension, which counts the groups."""
    weights = torch.cat([p.detach().float().flatten(1) for p in parts], dim=1)
    return weights.square().mean(dim=1).sqrt()
