"""How much the heads, channels and blocks of a network matter, as pure functions of its weights and their gradients.

A group is what leaves the network together. `elements` says how much each single weight matters, `along` adds up over
the groups of an axis (`strategies/surgery.py`), so that a group is the same here and where it is cut.

Shapes: H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.gradients import Gradients
from strategies.surgery import Axes, Axis

Importance = Literal["magnitude", "taylor", "hessian"]


def elements(weights: Mapping[str, Tensor], importance: Importance, gradients: Gradients | None) -> dict[str, Tensor]:
    """How much each weight matters, shaped like the weights, float32.

        magnitude: w²
        taylor: (w · ∂L/∂w)², the squared change of the loss when w becomes 0, to first order
        hessian: ½ · w² · F, with F = E[(∂L/∂w)²] in the place of the Hessian's diagonal

    Source: Molchanov et al. 2019, arXiv:1906.10771, for `taylor`; LeCun et al. 1990, Optimal Brain Damage, for
    `hessian`, with the diagonal of the empirical Fisher matrix as in Theis et al. 2018, arXiv:1801.05787.

    Args:
        weights: parameters by name.
        gradients: of these parameters; `magnitude` needs none.
    """
    floats = {name: weight.detach().float() for name, weight in weights.items()}
    if importance == "magnitude":
        return {name: w.square() for name, w in floats.items()}
    assert gradients is not None, f"`{importance}` reads gradients"
    if importance == "taylor":
        return {name: (w * gradients.mean[name]).square() for name, w in floats.items()}
    return {name: 0.5 * w.square() * gradients.square[name] for name, w in floats.items()}


@dataclass(frozen=True)
class Scores:
    """Sums over groups [n], and how many weights went into each."""

    total: Tensor
    count: int

    def importance(self, importance: Importance) -> Tensor:
        """Of each group [n]. `magnitude`: the root mean square of its weights (the L2 norm over the square root of its
        size), so that large groups have no advantage. Others: the sum, which estimates a change of the loss."""
        return (self.total / self.count).sqrt() if importance == "magnitude" else self.total


def along(parts: Mapping[str, Tensor], axes: Axes, axis: Axis) -> Scores:
    """Add up over everything that belongs to each position of an axis.

    Args:
        parts: what `elements` gave.
        axes: what the dimensions of these tensors count.
    """
    total, count = torch.zeros(()), 0
    for name, dims in axes.items():
        for dim, counted in dims.items():
            if counted == axis and name in parts:
                rest = parts[name].movedim(dim, 0).reshape(parts[name].shape[dim], -1)
                total, count = total.to(rest.device) + rest.sum(dim=1), count + rest.shape[1]
    assert count, f"nothing in the network has the axis {axis}"
    return Scores(total, count)


def head_scores(parts: Mapping[str, Tensor], axes: Axes, block: int, num_heads: int) -> Scores:
    """Of each head [H]: its rows (and biases) of query, key and value, and its columns of the projection. The bias of
    the projection belongs to all heads."""
    rows, columns = along(parts, axes, Axis("qkv", block)), along(parts, axes, Axis("heads", block))
    E = len(columns.total) // num_heads
    total = rows.total.view(3, num_heads, E).sum(dim=(0, 2)) + columns.total.view(num_heads, E).sum(dim=1)
    return Scores(total, 3 * E * rows.count + E * columns.count)


def head_channel_scores(parts: Mapping[str, Tensor], axes: Axes, block: int, num_heads: int) -> tuple[Scores, Scores]:
    """Of each channel inside each head, twice [H, E]: a row of the queries with the keys' that it is multiplied with;
    and a row of the values with its column of the projection."""
    rows, columns = along(parts, axes, Axis("qkv", block)), along(parts, axes, Axis("heads", block))
    q, k, v = rows.total.view(3, num_heads, -1)
    return Scores(q + k, 2 * rows.count), Scores(v + columns.total.view_as(v), rows.count + columns.count)


def block_scores(parts: Mapping[str, Tensor], depth: int) -> list[Scores]:
    """Of each block, all its weights together."""
    found = []
    for block in range(depth):
        own = [part for name, part in parts.items() if name.startswith(f"blocks.{block}.")]
        found.append(Scores(torch.stack([part.sum() for part in own]).sum(), sum(part.numel() for part in own)))
    return found
