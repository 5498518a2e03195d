"""Bring patches to a convolutional teacher's feature maps, inside the student's forward pass.

Shapes: B images, P prefix tokens, n = h·w patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from strategies.distillation.feature_distance import grid_size, grid_tokens, to_map
from strategies.distillation.projectors import blocks_of, pair_key
from strategies.state import Output, State


def aligner(width: int, teacher_width: int) -> nn.Sequential:
    """Depth-wise 3×3 convolution, ReLU, 1×1 convolution: [B, width, h, w] → [B, teacher_width, h, w]."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width),
        nn.ReLU(),
        nn.Conv2d(width, teacher_width, kernel_size=1),
    )


class Aligners(nn.Module):
    """One aligner a pair of blocks (DearKD, arXiv:2204.12997)."""

    def __init__(
        self, pairs: Sequence[tuple[int, int]], student_widths: Sequence[int], teacher_widths: Sequence[int]
    ) -> None:
        """Build the aligners.

        Args:
            pairs: (student block, teacher stage).
            student_widths: D of the student's features after each block.
            teacher_widths: channels of the teacher's.
        """
        super().__init__()
        self.pairs = nn.ModuleDict({pair_key(s, t): aligner(student_widths[s], teacher_widths[t]) for s, t in pairs})

    def forward(self, out: Output, state: State) -> dict[str, Tensor]:
        """Align the tapped features.

        Returns:
            Pair → tokens [B, n, D of the teacher], on the student's grid.
        """
        aligned = {}
        for key, layers in self.pairs.items():
            features = out.features[blocks_of(key)[0]]
            size = grid_size(features, out.num_prefix_tokens)
            grid = to_map(grid_tokens(features, out.num_prefix_tokens), size)
            aligned[key] = layers(grid).flatten(2).transpose(1, 2)
        return aligned
