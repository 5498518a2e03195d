"""ViTKD: shallow layers are mimicked, the deep one is generated from what a mask leaves of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import TAP, TEACHER_TAP, Claims, Strategy, at_blocks
from strategies.distillation.pairs import Pairs, last_pair, refuse_twice
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class ViTKDConfig(StrategyConfig):
    """Options of `vitkd`."""

    name: Literal["vitkd"] = "vitkd"
    """Always `vitkd`."""

    shallow: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)] = ((0, 0), (1, 1))
    """Blocks that are mimicked: [[student block, teacher block], ...], both from 0. Hierarchical networks count feature
    stages."""

    deep: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """Block that is generated: [student block, teacher block]. `null` = the last block of each."""

    mask_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the patches that are masked before the deep block is generated; others for every image and step."""

    mimic_weight: float = Field(default=3e-5, ge=0)
    """Weight of the shallow term beside the task's cross-entropy, which keeps weight 1. The term is a sum over patches
    and channels: networks with fewer of them than DeiT's 196 · 384 want a larger weight. 0 = no mimicking."""

    generation_weight: float = Field(default=3e-6, ge=0)
    """Weight of the deep term; a sum too. 0 = no generation."""

    @model_validator(mode="after")
    def _each_pair_once(self) -> ViTKDConfig:
        refuse_twice("shallow", self.shallow)
        return self


class ViTKD(Strategy[ViTKDConfig]):
    """loss = CE + mimic_weight · Σ over shallow pairs ‖align(s) − t‖² + generation_weight · ‖generate(s) − t‖²_masked.

    s and t are the patches of student and teacher between two blocks; squares are summed over patches and channels and
    averaged over images. `generate` brings the deep patches to the teacher's width, replaces masked ones by a learned
    token and runs conv 3×3 – ReLU – conv 3×3; only masked places are compared, and their sum is divided by their share.
    Yang et al. 2022, arXiv:2209.02432. Aligners are there between equal widths, too (the authors'
    code leaves them out).

    Prefix tokens are left out. A teacher's grid of another size is resampled to the student's, bilinearly. All layers
    run in the student's forward pass in training, and are no part of the network as deployed.
    """

    kind = "distillation"
    paper = "Yang et al. 2022, arXiv:2209.02432"
    neutral: ClassVar = {"mimic_weight": 0.0, "generation_weight": 0.0}
    examples = ({}, {"shallow": [[0, 1]], "deep": [2, 3], "mask_ratio": 0.25, "mimic_weight": 1e-3})
    deployed = False
    Config = ViTKDConfig
    deep: tuple[int, int]
    """(student block, teacher block) that is generated; known once `wrap` has seen the networks."""

    def pairs(self, facts: Facts) -> Pairs:
        """(student block, teacher block) of every comparison, the deep one last."""
        return (*self.config.shallow, *(last_pair(facts) if self.config.deep is None else (self.config.deep,)))

    def claims(self, facts: Facts) -> Claims:
        """Reads the student's and the teacher's tokens after the paired blocks."""
        pairs = self.pairs(facts)
        return Claims(needs=at_blocks(TAP, (s for s, _ in pairs)) | at_blocks(TEACHER_TAP, (t for _, t in pairs)))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Give the student aligners and generator."""
        from strategies.distillation.mimic_generate import MimicGenerate

        assert facts.teacher is not None, "claims ask for a teacher"
        *shallow, self.deep = self.pairs(facts)
        widths = facts.student.tap_widths, facts.teacher.tap_widths
        layers = MimicGenerate(shallow, self.deep, *widths, self.config.mask_ratio)
        like = next(student.model.parameters())
        student.extras[self.name] = layers.to(like.device, like.dtype)
        student.readouts[self.name] = layers

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`mimic` and `generation`."""
        import torch

        from strategies.distillation.feature_distance import grid_size, grid_tokens
        from strategies.distillation.mimic_generate import GENERATED, MASK, masked_distance, squared_distance
        from strategies.distillation.projectors import pair_key

        assert teacher is not None, "claims ask for a teacher"
        seen, hints = out.readouts[self.name], {}
        for s, t in (*self.config.shallow, self.deep):
            size = grid_size(out.features[s], out.num_prefix_tokens)
            hints[s, t] = grid_tokens(teacher.features[t], teacher.num_prefix_tokens, size=size)
        mimic = [squared_distance(seen[pair_key(*pair)], hints[pair]) for pair in self.config.shallow]
        generation = masked_distance(seen[GENERATED], hints[self.deep], seen[MASK], self.config.mask_ratio)
        return {"mimic": torch.stack(mimic).sum(), "generation": generation}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"mimic": self.config.mimic_weight, "generation": self.config.generation_weight}
