"""The position encoding generator of CPVT.

Source: Chu et al. 2021, "Conditional Positional Encodings for Vision Transformers", arXiv:2102.10882, section 3.3.

Shapes: R images, N tokens, P prefix tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from strategies.component.patch_grid import to_grid, to_tokens
from strategies.state import State


class PositionGenerator(nn.Module):
    """x + depth-wise convolution of x over the patch grid, at the position seam of one block."""

    def __init__(self, width: int, kernel: int, *, at_zero: bool) -> None:
        """`at_zero`: start without effect."""
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        if at_zero:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a Conv2d has a bias by default

    def forward(self, state: State) -> State:
        """`state.x` is [R, N, D], on the whole grid; prefix tokens pass unchanged."""
        P = state.num_prefix_tokens
        patches: Tensor = state.x[:, P:]
        placed = patches + to_tokens(self.conv(to_grid(patches)))
        return state.with_x(torch.cat([state.x[:, :P].to(placed.dtype), placed], dim=1))
