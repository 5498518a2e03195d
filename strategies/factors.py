"""Linear layers as a product of two smaller ones.

Shapes: m inputs, n outputs, r rank, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Factored(nn.Module):
    """y = U·V·x + b with V [r, m] and U [n, r]: r·(m + n) products a token where a matrix takes m·n.

    Args:
        down: V.
        up: U.
        bias: [n]; `None` = none.
    """

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.down, self.up = _linear(down, None), _linear(up, bias)

    @property
    def in_features(self) -> int:
        """m."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """n."""
        return self.up.out_features

    @property
    def rank(self) -> int:
        """r."""
        return self.down.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[..., m] → [..., n]."""
        y: Tensor = self.up(self.down(x))
        return y

    def product(self) -> Tensor:
        """U·V, detached [n, m]."""
        return self.up.weight.detach() @ self.down.weight.detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # On the meta device first: initialisation would draw from the random numbers that training is to see.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def dense_weight(layer: Any) -> Tensor:
    """The matrix of a linear layer in either form, detached [n, m]."""
    return layer.product() if isinstance(layer, Factored) else layer.weight.detach()


def some_outputs(layer: Any, x: Tensor, rows: slice) -> Tensor:
    """Some outputs of a linear layer in either form; the others are not computed.

    Args:
        layer: `nn.Linear` or `Factored`.
        x: [..., m].
        rows: which outputs.
    """
    if isinstance(layer, Factored):
        layer, x = layer.up, layer.down(x)
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


def truncated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of rank r that are nearest to a matrix in the Frobenius norm (Eckart & Young 1936): from the singular
    value decomposition W = P·S·Qᵀ, V = √S_r·Q_rᵀ and U = P_r·√S_r.

    Args:
        weight: [n, m].

    Returns:
        V [r, m] and U [n, r], in the dtype of the weight.
    """
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).to(weight.dtype), (left[:, :rank] * root).to(weight.dtype)


def rank_for(weight: Tensor, energy: float) -> int:
    """The smallest rank r with Σ_{i ≤ r} s_i² ≥ energy · Σ s_i², s_i the singular values of a matrix [n, m],
    descending; at least 1."""
    squares = torch.linalg.svdvals(weight.float()).double().square()
    share = squares.cumsum(0) / squares.sum()
    return min(int((share < energy).sum()) + 1, len(squares))


def factorise(model: nn.Module, name: str, rank: int) -> None:
    """Put the best factors of this rank in the place of a linear layer (in either form).

    Args:
        name: the layer's in the model.
    """
    layer: Any = model.get_submodule(name)
    bias = layer.up.bias if isinstance(layer, Factored) else layer.bias
    down, up = truncated(dense_weight(layer), rank)
    model.set_submodule(name, Factored(down, up, None if bias is None else bias.detach()))


def blank_factors(model: nn.Module, name: str, rank: int) -> None:
    """Put zero factors in the place of a linear layer: weights are loaded afterwards."""
    layer: Any = model.get_submodule(name)
    weight, bias = layer.weight.detach(), layer.bias
    down, up = weight.new_zeros(rank, layer.in_features), weight.new_zeros(layer.out_features, rank)
    model.set_submodule(name, Factored(down, up, None if bias is None else bias.detach()))
