"""Soft token pruning: patches that are left out become one package token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from strategies.dynamic.learned_selection import LearnedSelection, LearnedSelectionConfig, counts
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class SoftTokenPruningConfig(LearnedSelectionConfig):
    """Options of `soft_token_pruning`."""

    name: Literal["soft_token_pruning"] = "soft_token_pruning"
    """Always `soft_token_pruning`."""


class SoftTokenPruning(LearnedSelection[SoftTokenPruningConfig]):
    """Keep the ⌊ρ^s · n⌋ patches that look best to the attention's heads, and one package of the others (SPViT).

    Each head has D/H channels of a patch; one predictor scores them all, as in `token_sparsification`, and a patch's
    probability to be kept is the mean over heads weighted by sigmoid(MLP(mean of each head's channels)). The package is
    Σ p_j x_j / Σ p_j over the patches that leave at a block; it counts as a patch at the next. In training the decision
    is drawn and patches are masked; evaluation takes the best and draws nothing, so that the same image always gets the
    same answer.

    The loss is CE + 2 · ratio + ½ · KL(teacher ‖ student), ratio = mean over images and s of (share kept − ρ^s)².
    Without a teacher write `kl_weight: 0`.
    """

    paper = "Kong et al. 2022, arXiv:2112.13890"
    examples = ({"keep_rate": 0.7}, {"keep_rate": 0.5, "blocks": [0, 2], "kl_weight": 0.0})
    Config = SoftTokenPruningConfig

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put a predictor before each block. With nothing to leave out they rest, frozen."""
        from torch import nn

        from strategies.dynamic.keep_predictor import HeadwisePredictor, Kept, Select

        n, blocks = facts.student.num_patches, self.blocks(facts.student.depth)
        like, width = next(student.model.parameters()), student.model.embed_dim
        slices = math.gcd(width, facts.student.num_heads)  # pruning may leave a width that heads do not divide
        predictors = {block: HeadwisePredictor(width, slices).to(like.device, like.dtype) for block in blocks}
        student.extras[self.name] = nn.ModuleDict({str(b): p for b, p in predictors.items()})
        if not self.acting:
            student.extras[self.name].requires_grad_(False)
            return
        for block, num in zip(blocks, counts(self.config.keep_rate, len(blocks), n), strict=True):
            student.entry[block] = Select(student, self.name, predictors[block], num, package=True)
        rates = tuple(self.config.keep_rate**s for s in range(1, len(blocks) + 1))
        student.readouts[self.name] = Kept(self.name, rates, n)
