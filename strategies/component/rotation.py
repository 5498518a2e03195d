"""Rotary positions in two dimensions.

Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer", arXiv:2403.13298, section 3.2; starting
values of the mixed frequencies as in the authors' published code.

Shapes: R images, H heads, N tokens, P prefix tokens, E head width.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from strategies.state import State


def frequencies(head_dim: int, theta: float) -> Tensor:
    """θ_t = theta^(−4t/E) for t = 0 … E/4 − 1, radians a patch [E/4], float32."""
    return theta ** (-torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim)


def axial_angles(position: Tensor, frequency: Tensor) -> Tensor:
    """Pairs turn in turn by column and by row.

    Args:
        position: rows and columns [R, N, 2].
        frequency: [E/4].

    Returns:
        Radians [R, 1, N, E/2], the same for every head.
    """
    row, column = position.unsqueeze(-1).unbind(dim=2)  # [R, N, 1] each
    return torch.stack([column * frequency, row * frequency], dim=-1).flatten(-2).unsqueeze(1)


def mixed_angles(position: Tensor, frequency: Tensor) -> Tensor:
    """Each pair turns by row and column together.

    Args:
        position: rows and columns [R, N, 2].
        frequency: of rows and of columns, for each head [2, H, E/2].

    Returns:
        Radians [R, H, N, E/2].
    """
    row, column = position[:, None, :, :1], position[:, None, :, 1:]  # [R, 1, N, 1] each
    return row * frequency[0].unsqueeze(1) + column * frequency[1].unsqueeze(1)


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channels t and t + E/2 as a pair: (a, b) → (a cos − b sin, b cos + a sin).

    Which channels make a pair is free, as the layers before learn to fill them; halves are faster than neighbours.

    Args:
        x: [R, H, N, E].
        angles: radians [R or 1, H or 1, N, E/2].
    """
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    others = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * torch.cat([cosine, cosine], dim=-1), others, torch.cat([-sine, sine], dim=-1))


def start_of_mixed(num_heads: int, head_dim: int, theta: float) -> Tensor:
    """θ_t in two directions at a right angle, turned at random for each head [2, H, E/2]."""
    magnitude = frequencies(head_dim, theta)
    direction = 2 * math.pi * torch.rand(num_heads, 1)
    both = torch.cat(
        [direction.expand(-1, len(magnitude)), (direction + math.pi / 2).expand(-1, len(magnitude))], dim=1
    )
    return torch.stack([both.sin(), both.cos()]) * magnitude.repeat(2)


class Places:
    """The position seam of block 0: where each token is, from here on."""

    def __call__(self, state: State) -> State:
        """Rows and columns of the patches, prefix tokens at 0; `state.x` is [R, N, D], on the whole grid."""
        if state.position is not None:
            return state
        R, N, _ = state.x.shape
        P = state.num_prefix_tokens
        side = math.isqrt(N - P)
        assert side * side == N - P, "`claims` needs the whole grid, and images are square"
        place = torch.arange(N - P, device=state.x.device)
        rows, columns = place.div(side, rounding_mode="floor"), place.remainder(side)
        position = torch.cat([place.new_zeros(P, 2), torch.stack([rows, columns], dim=1)]).float()
        return replace(state, position=position.expand(R, N, 2))


def _places(state: State) -> Tensor:
    """Where the tokens are [R or 1, N, 2]: as long as all images agree, they are looked at once."""
    assert state.position is not None, "`Places` writes them down before block 0"
    return state.position[:1] if state.position.stride(0) == 0 else state.position


class Axial:
    """Turns the queries and keys of one block; nothing to learn."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.frequency = frequencies(head_dim, theta)

    def __call__(self, q: Tensor, k: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """[R, H, N, E] each → the same, turned."""
        angles = axial_angles(_places(state), self.frequency.to(q.device))
        return turn(q, angles), turn(k, angles)


class Mixed(nn.Module):
    """Turns the queries and keys of one block, at learned frequencies."""

    def __init__(self, num_heads: int, head_dim: int, theta: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(start_of_mixed(num_heads, head_dim, theta))

    def forward(self, q: Tensor, k: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """[R, H, N, E] each → the same, turned."""
        angles = mixed_angles(_places(state), self.frequency.float())
        return turn(q, angles), turn(k, angles)
