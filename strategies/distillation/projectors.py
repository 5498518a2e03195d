"""Bring a student's features to the teacher's width, inside the student's forward pass.

Shapes: B images, n = h·w patches, D width, k = 1 with class token and 0 without.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from strategies.distillation.feature_distance import grid_size, grid_tokens, to_map
from strategies.state import Output, State


def pair_key(student_block: int, teacher_block: int) -> str:
    """Name of a pair's projector and of what it computes."""
    return f"{student_block}-{teacher_block}"


def blocks_of(key: str) -> tuple[int, int]:
    """(student block, teacher block) behind a pair's name."""
    student_block, teacher_block = key.split("-")
    return int(student_block), int(teacher_block)


class Projectors(nn.Module):
    """One projector a pair of blocks: a matrix for every token, or a 3×3 convolution over the patch grid (FitNets,
    arXiv:1412.6550, section 2.2, whose regressors are convolutions)."""

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
        *,
        conv: bool = False,
        class_token: bool = False,
    ) -> None:
        """Build the projectors.

        Args:
            pairs: (student block, teacher block).
            student_widths: D of the student's features after each block.
            teacher_widths: D of the teacher's.
            conv: convolution instead of a matrix.
            class_token: project the class token too (not with `conv`).
        """
        super().__init__()
        assert not (conv and class_token), "the class token has no place on the grid"
        self.class_token = class_token
        self.pairs = nn.ModuleDict()
        for s, t in pairs:
            ours, theirs = student_widths[s], teacher_widths[t]
            layer = nn.Conv2d(ours, theirs, kernel_size=3, padding=1) if conv else nn.Linear(ours, theirs)
            self.pairs[pair_key(s, t)] = layer

    def forward(self, out: Output, state: State) -> dict[str, Tensor]:
        """Project the tapped features.

        Returns:
            Pair → tokens [B, k + n, D of the teacher], on the student's grid.
        """
        projected = {}
        for key, layer in self.pairs.items():
            features = out.features[blocks_of(key)[0]]
            tokens = grid_tokens(features, out.num_prefix_tokens, class_token=self.class_token)
            if isinstance(layer, nn.Conv2d):
                size = grid_size(features, out.num_prefix_tokens)
                projected[key] = layer(to_map(tokens, size)).flatten(2).transpose(1, 2)
            else:
                projected[key] = layer(tokens)
        return projected
