"""What strategies share that learn which patches to keep: how many at which block, claims, knob and losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import Field, NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import DENSE, GRID, PLACED, TEACHER_LOGITS, TOKENS, Claim, Claims, OptionError, Strategy, at_blocks
from strategies.blocks import checked, quarters
from strategies.dynamic.pooling import refuse_other_pooling
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output


class LearnedSelectionConfig(StrategyConfig):
    """Options of every strategy that learns which patches to keep."""

    keep_rate: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share ρ of the patches that each of `blocks` keeps: ⌊ρ^s · n⌋ of the image's n patches are left at the s-th. 1 =
    all, and nothing is learned."""

    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks before which patches are chosen, counted from 0; `null` = the quarters of the network (3, 6 and 9 of
    12)."""

    ratio_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the ratio loss, which draws the share of kept patches to ρ^s."""

    kl_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the KL divergence from the teacher's class probabilities; 0 = no teacher is needed for it."""


L = TypeVar("L", bound=LearnedSelectionConfig)


class LearnedSelection(Strategy[L]):
    """Predictors score patches; training masks by drawing, evaluation gathers the best. Subclasses say what scores."""

    kind = "dynamic"
    neutral: ClassVar = {"keep_rate": 1.0}
    knob = "keep_rate"

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks before which patches are chosen, ascending.

        Raises:
            OptionError: if the network does not have them, or one is listed twice.
        """
        listed = self.config.blocks
        return tuple(sorted(checked(self.name, "blocks", quarters(depth) if listed is None else listed, depth)))

    @property
    def acting(self) -> bool:
        """Whether patches are left out."""
        return self.config.keep_rate < 1

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens of its blocks. Behind the first, patches are masked in training and gone in evaluation;
        features are compared in training, where every patch is still at its place."""
        student = facts.student
        blocks = self.blocks(student.depth)
        if not self.acting:
            return Claims()
        refuse_other_pooling(self.name, "keep_rate", student, "1 with this pooling")
        if student.num_patches and counts(self.config.keep_rate, len(blocks), student.num_patches)[-1] < 1:
            least = (1 / student.num_patches) ** (1 / len(blocks))
            raise OptionError(
                self.name,
                "keep_rate",
                f"{self.config.keep_rate} at {len(blocks)} blocks leaves none of {student.num_patches} patches",
                f"{math.ceil(least * 1000) / 1000} to 1",
                "Raise `keep_rate`, or list fewer `blocks`.",
            )
        behind = range(blocks[0], student.depth)
        return Claims(
            owns=at_blocks(TOKENS, blocks),
            needs=at_blocks(DENSE, blocks) | frozenset({Claim(TEACHER_LOGITS)} if self.config.kl_weight else ()),
            hides=at_blocks(GRID, behind) | at_blocks(DENSE, behind),
            offers=at_blocks(PLACED, blocks[:1]),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From a third of the patches at each block to all."""
        return (0.3, 0.5, 0.7, 0.85, 1.0)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`ratio`: mean over images and blocks of (share kept − ρ^s)²; `kl`: KL(teacher ‖ student), batchmean."""
        from strategies.distillation.logits import soft_distillation

        if not self.acting:
            return {}
        terms = {"ratio": out.readouts[self.name]["ratio"]}
        if self.config.kl_weight:
            assert teacher is not None, "`claims` asks for the teacher's logits"
            terms["kl"] = soft_distillation(out.logits, teacher.logits, temperature=1.0)
        return terms

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"ratio": self.config.ratio_weight, "kl": self.config.kl_weight}

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_kept`: tokens that leave the last block, as a mean over images; of those that left before, none."""
        return {"tokens_kept": out.tokens_an_image()[-1]}


def counts(keep_rate: float, num_blocks: int, num_patches: int) -> tuple[int, ...]:
    """Patches left at each block, ⌊ρ^s · n⌋ for s = 1, 2, …, whatever floats make of the product."""
    return tuple(math.floor(num_patches * keep_rate**s + 1e-9) for s in range(1, num_blocks + 1))
