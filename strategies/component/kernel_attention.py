"""Attention through a feature map: φ(q)·Σ φ(k)ᵀ v / φ(q)·Σ φ(k).

Sources: Katharopoulos et al. 2020, arXiv:2006.16236, equations 4 to 7; Han et al. 2023, arXiv:2308.00442,
equations 5 to 8.

Shapes: R images, H heads, N tokens, T tokens of all images packed, P prefix tokens, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies import ragged
from strategies.attention import project, put_out
from strategies.component.patch_grid import to_grid, to_tokens
from strategies.state import State

EPSILON = 1e-6
"""Keeps the divisor positive where every feature of a query is 0."""
KERNEL = 5
"""Side of the convolution of the values, in patches."""


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, element-wise: positive everywhere. Written as relu(x) + exp(min(x, 0)), which is several times faster
    on a CPU."""
    return F.relu(x) + x.clamp(max=0).exp()


def focused_features(x: Tensor) -> Tensor:
    """‖r‖ / ‖r³‖ · r³ with r = relu(x): the length stays, the direction moves towards the largest elements [..., E]."""
    r = F.relu(x)
    cubed = r**3
    length = r.norm(dim=-1, keepdim=True) / cubed.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return cubed * length


def kernel_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
    """Linear attention of features.

    Args:
        q, k: features, not negative [R, H, N, E].
        v: [R, H, N, E].
        weight: how often each token counts as a key [R, N, 1], 0 = not at all; `None` = once.

    Returns:
        [R, H, N, E].
    """
    if weight is not None:
        k = k * weight.unsqueeze(1).to(k.dtype)
    together = k.transpose(-2, -1) @ v  # [R, H, E, E]
    divisor = (q * k.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True)
    return (q.to(together.dtype) @ together) / (divisor + EPSILON)


def key_weight(state: State) -> Tensor | None:
    """How often each token counts as a key [R, N, 1], from sizes and soft mask; `None` = once each."""
    size = state.size if state.proportional_attention else None
    if size is None or state.keep is None:
        return state.keep if size is None else size
    return size * state.keep


class Elu:
    """The attention seam of one block, φ(x) = elu(x) + 1; uses the weights that are there."""

    def __call__(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """x is [R, N, D] or packed [1, T, D]."""
        q, k, v = project(attn, x)
        return put_out(attn, self.attend(q, k, v, state), x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, state: State) -> Tensor:
        """[R, H, N, E] each → the same."""
        dtype = v.dtype
        q, k = elu_features(q.float()), elu_features(k.float())
        weight = key_weight(state)
        if state.lengths is None:
            return kernel_attention(q, k, v.float(), weight).to(dtype)
        # Sums over each image's tokens: filled up with tokens that do not count, all images take one call.
        H, E = q.shape[1], q.shape[3]
        row = torch.cat([t.float().transpose(1, 2).flatten(2) for t in (q, k, v)], dim=-1)  # [1, T, 3·H·E]
        counts = row.new_ones(1, row.shape[1], 1) if weight is None else weight
        filled, real = ragged.pad(torch.cat([row, counts], dim=-1), state.lengths)
        q, k, v = filled[..., :-1].unflatten(-1, (3, H, E)).permute(2, 0, 3, 1, 4).unbind(0)
        y = kernel_attention(q, k, v, filled[..., -1:])
        return y.transpose(1, 2)[real].transpose(0, 1).unsqueeze(0).to(dtype)


class Focused(nn.Module):
    """The attention seam of one block, with the focused map and a convolution of the values."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(head_dim, head_dim, KERNEL, padding=KERNEL // 2, groups=head_dim)

    def forward(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """x is [R, N, D], on the whole grid."""
        q, k, v = project(attn, x)
        P = state.num_prefix_tokens
        y = kernel_attention(focused_features(q.float()), focused_features(k.float()), v.float()).to(v.dtype)
        near = to_tokens(self.conv(to_grid(v[:, :, P:].flatten(0, 1)))).unflatten(0, v.shape[:2])
        return put_out(attn, y + F.pad(near, (0, 0, P, 0)), x)
