"""Exit heads that read the patches as a picture: local ones for shallow exits, global ones for deep exits.

Source: Xu et al. 2023, "LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (arXiv:2308.00255), the local
perception and the global aggregation head. There batch norms stand between the convolutions; here the tokens are
normed once, by a LayerNorm before the head, so that images of a batch stay independent.

Shapes: R images, P prefix tokens, n patches of h rows and w columns, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from strategies.component.patch_grid import to_grid, to_tokens
from strategies.dynamic.exit_head import LinearExit
from strategies.state import State

WINDOW = 2
"""Side of the squares of patches that a global head averages before attention."""


class GridExit(LinearExit):
    """fc(mean over patches of what the head makes of them + class token), all of normed tokens.

    Args:
        patches: maps normed patches [R, n, D] to tokens [R, m, D].
    """

    def __init__(self, model: Any, threshold: float | None, patches: nn.Module) -> None:
        super().__init__(model, threshold)
        like = next(model.parameters())
        self.patches = patches.to(like.device, like.dtype)

    def summary(self, state: State) -> Tensor:
        """What the classifier reads [R, D]."""
        assert state.lengths is None, "`claims` needs the whole grid"
        assert state.aside is None, "`claims` needs the whole grid"
        x = self.norm(state.x)
        pooled: Tensor = self.patches(x[:, state.num_prefix_tokens :]).mean(dim=1)
        return pooled + x[:, 0] if self.on_class_token else pooled


class LocalPerception(nn.Module):
    """x + W₂ · GELU(DWConv₃ₓ₃(GELU(W₁ · x))) on the patch grid, W₁ and W₂ maps of D channels to D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """[R, n, D] → [R, n, D]."""
        y: Tensor = self.around(to_grid(F.gelu(self.into(x))))
        found: Tensor = x + self.out(to_tokens(F.gelu(y)))
        return found


class GlobalAggregation(nn.Module):
    """Multi-head attention between the means of squares of 2 × 2 patches; at an odd edge they are smaller."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[R, n, D] → [R, ⌈h/2⌉·⌈w/2⌉, D]."""
        x = to_tokens(F.avg_pool2d(to_grid(x), WINDOW, ceil_mode=True))
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        found: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


def grid_exit(model: Any, threshold: float | None, *, shallow: bool) -> GridExit:
    """The local head of a shallow exit, or the global head of a deep one."""
    width = model.embed_dim
    if shallow:
        return GridExit(model, threshold, LocalPerception(width))
    # Pruning may leave a width that heads do not divide.
    return GridExit(model, threshold, GlobalAggregation(width, math.gcd(width, model.blocks[0].attn.num_heads)))
