"""ViTKD's two ways to compare features: mimic shallow ones, generate deep ones behind a mask.

Shapes: B images, n = h·w patches, D width (of student or teacher).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from strategies.distillation.feature_distance import grid_size, grid_tokens, to_map
from strategies.distillation.projectors import Projectors
from strategies.state import Output, State

GENERATED, MASK = "generated", "mask"


class MimicGenerate(nn.Module):
    """Aligners of shallow pairs, and aligner, mask token and generator of the deep pair (arXiv:2209.02432, section 3).

    It runs at the end of the student's forward pass and draws its masks from torch's global generator.
    """

    def __init__(
        self,
        shallow: Sequence[tuple[int, int]],
        deep: tuple[int, int],
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
        mask_ratio: float,
    ) -> None:
        """Build the layers.

        Args:
            shallow: (student block, teacher block) that are mimicked.
            deep: (student block, teacher block) that is generated.
            student_widths, teacher_widths: D of the features after each block.
            mask_ratio: share of the patches that are masked, above 0, at most 1.
        """
        super().__init__()
        self.deep_block, width = deep[0], teacher_widths[deep[1]]
        self.mask_ratio = mask_ratio
        self.mimics = Projectors(shallow, student_widths, teacher_widths)
        self.align = nn.Linear(student_widths[deep[0]], width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.generate = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )

    def forward(self, out: Output, state: State) -> dict[str, Tensor]:
        """Compute what is compared.

        Returns:
            Shallow pair → [B, n, D of the teacher]; `generated` → [B, n, D of the teacher]; `mask` → [B, n, 1] (bool),
            true where a patch was masked.
        """
        features = out.features[self.deep_block]
        tokens = self.align(grid_tokens(features, out.num_prefix_tokens))
        mask = random_mask(tokens.shape[0], tokens.shape[1], self.mask_ratio, tokens.device)
        tokens = torch.where(mask, self.mask_token.to(tokens.dtype), tokens)
        generated = self.generate(to_map(tokens, grid_size(features, out.num_prefix_tokens)))
        return {**self.mimics(out, state), GENERATED: generated.flatten(2).transpose(1, 2), MASK: mask}


def random_mask(num_images: int, num_patches: int, ratio: float, device: torch.device) -> Tensor:
    """Masks [B, n, 1] (bool) with n − ⌊n · (1 − ratio)⌋ patches each, every image its own."""
    kept = int(num_patches * (1 - ratio))
    rank = torch.rand(num_images, num_patches, device=device).argsort(dim=1).argsort(dim=1)
    return (rank >= kept).unsqueeze(-1)


def squared_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared difference of tokens [B, n, D], summed over patches and channels and averaged over images; float32."""
    return (ours.float() - theirs.float()).square().flatten(1).sum(dim=1).mean()


def masked_distance(generated: Tensor, theirs: Tensor, mask: Tensor, ratio: float) -> Tensor:
    """`squared_distance` over the masked patches alone, divided by their share: its size does not depend on it.

    Args:
        generated: [B, n, D].
        theirs: [B, n, D].
        mask: [B, n, 1] (bool).
        ratio: share of masked patches.
    """
    return squared_distance(generated * mask, theirs * mask) / ratio
