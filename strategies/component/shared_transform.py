"""What makes blocks differ that share their matrices.

Source: Zhang et al. 2022, "MiniViT", arXiv:2204.07154, section 3.2 (weight transformation).

Shapes: R images, H heads, N tokens, P prefix tokens, n patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.component.patch_grid import to_grid, to_tokens
from strategies.state import State

KERNEL = 7
"""Side of the convolution, in patches."""


class HeadMixing(nn.Module):
    """Linear maps between heads, before and after the softmax; both start as the identity."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.eye(num_heads))
        self.weights = nn.Parameter(torch.eye(num_heads))

    def before(self, logits: Tensor) -> Tensor:
        """[R, H, M, N] of M queries → the same."""
        return mixed(logits, self.logits)

    def after(self, weights: Tensor) -> Tensor:
        """[R, H, M, N] → the same; rows need not sum to 1 any more."""
        return mixed(weights, self.weights)


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """y_h = Σ_k matrix_hk · x_k.

    Args:
        x: [R, H, M, N].
        matrix: [H, H].
    """
    return (matrix.to(x.dtype) @ x.flatten(2)).view_as(x)


class LocalMlp(nn.Module):
    """The MLP's half of a block: a depth-wise convolution of the normed patches is added before the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a Conv2d has a bias by default

    def forward(self, block: Any, state: State) -> State:
        """`state` is dense, on the whole grid."""
        y, P = block.norm2(state.x), state.num_prefix_tokens
        near = to_tokens(self.conv(to_grid(y[:, P:])))
        y = y + F.pad(near, (0, 0, P, 0))
        return state.with_x(state.x + block.drop_path2(block.ls2(block.mlp(y))))
