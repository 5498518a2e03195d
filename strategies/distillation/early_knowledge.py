"""Early knowledge: the first half of a network learns locality from the first stages of a convolutional teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import TAP, TEACHER_TAP, Claims, Strategy, at_blocks
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class EarlyKnowledgeConfig(StrategyConfig):
    """Options of `early_knowledge`."""

    name: Literal["early_knowledge"] = "early_knowledge"
    """Always `early_knowledge`."""

    pairs: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] | None = Field(default=None, min_length=1)
    """Blocks compared: [[student block, teacher stage], ...], both from 0. Left out: the first half of the teacher's
    stages, with blocks spread evenly over the first half of the student."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term beside the task's cross-entropy, which keeps weight 1. 0 = no distillation."""

    @model_validator(mode="after")
    def _pairs_differ(self) -> EarlyKnowledgeConfig:
        if self.pairs is not None and len(set(self.pairs)) != len(self.pairs):
            raise ValueError("`pairs` holds a pair twice; write each pair once")
        return self


class EarlyKnowledge(Strategy[EarlyKnowledgeConfig]):
    """loss = CE(student, label) + weight · mean over pairs of MSE(aligner(student's patches), teacher's feature map).

    Chen et al. 2022 (DearKD), arXiv:2204.12997: what a convolutional network knows early (that neighbours belong
    together) is taught in a first stage; in a second one the student trains alone, so that nothing holds it back. The
    second stage starts from the first (`init.stage`) and does not list this strategy; to let the first stage
    imitate the teacher's answers as well, list `response` or `distillation_token` beside it.

    The aligner is a depth-wise 3×3 convolution over the patch grid, ReLU, and a 1×1 convolution to the teacher's width;
    it is no part of the network as deployed. Feature maps of another size are resampled to the student's grid,
    bilinearly. The teacher may be of any family; in the paper it is a convolutional network.
    """

    kind = "distillation"
    paper = "Chen et al. 2022, arXiv:2204.12997"
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"pairs": [[0, 0], [1, 2]], "weight": 0.5})
    deployed = False
    Config = EarlyKnowledgeConfig

    def pairs(self, facts: Facts) -> tuple[tuple[int, int], ...]:
        """(student block, teacher stage) of every comparison."""
        if self.config.pairs is not None:
            return self.config.pairs
        stages = max(1, facts.teacher.depth // 2) if facts.teacher else 1
        half = facts.student.depth / 2
        return tuple((max(0, round((i + 1) * half / stages) - 1), i) for i in range(stages))

    def claims(self, facts: Facts) -> Claims:
        """Reads the student's and the teacher's tokens after the paired blocks."""
        pairs = self.pairs(facts)
        return Claims(needs=at_blocks(TAP, (s for s, _ in pairs)) | at_blocks(TEACHER_TAP, (t for _, t in pairs)))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Hang an aligner for each pair at the end of the student's pass."""
        from strategies.distillation.aligners import Aligners

        assert facts.teacher is not None, "claims ask for a teacher"
        aligners = Aligners(self.pairs(facts), facts.student.tap_widths, facts.teacher.tap_widths)
        like = next(student.model.parameters())
        student.extras[self.name] = aligners.to(like.device, like.dtype)
        student.readouts[self.name] = aligners

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `early`: the mean over pairs."""
        import torch

        from strategies.distillation.feature_distance import distance, grid_size, grid_tokens
        from strategies.distillation.projectors import blocks_of

        assert teacher is not None, "claims ask for a teacher"
        distances = []
        for key, aligned in out.readouts[self.name].items():
            block, stage = blocks_of(key)
            size = grid_size(out.features[block], out.num_prefix_tokens)
            aim = grid_tokens(teacher.features[stage], teacher.num_prefix_tokens, size=size)
            distances.append(distance("mse", aligned, aim))
        return {"early": torch.stack(distances).mean()}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"early": self.config.weight}
