"""Feature distillation: the student's tokens learn to look like the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import CLASS_TOKEN, TAP, TEACHER_TAP, Claim, Claims, OptionError, Strategy, at_blocks
from strategies.distillation.pairs import Pairs, last_pair, refuse_twice
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class FeatureConfig(StrategyConfig):
    """Options of `feature`."""

    name: Literal["feature"] = "feature"
    """Always `feature`."""

    pairs: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] | None = Field(default=None, min_length=1)
    """Blocks compared: [[student block, teacher block], ...], both from 0. Hierarchical networks count feature stages.
    Left out: the last block of each."""

    loss: Literal["mse", "cosine", "l1"] = "mse"
    """`mse`: mean squared difference over tokens and channels. `l1`: mean absolute difference. `cosine`: 1 − cosine of
    the angle between two tokens, averaged over tokens; blind to length."""

    projector: Literal["linear", "conv"] = "linear"
    """What brings the student's width to the teacher's, in training only: one matrix for every token, or a 3×3
    convolution over the patch grid."""

    class_token: bool = False
    """Compare the class tokens too; both networks need one, and the projector must be `linear`."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term beside the task's cross-entropy, which keeps weight 1. 0 = no distillation."""

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureConfig:
        if self.class_token and self.projector == "conv":
            raise ValueError(
                "`class_token` has no place on the grid that `projector: conv` runs over; write `projector: linear`"
            )
        refuse_twice("pairs", self.pairs)
        return self


class Feature(Strategy[FeatureConfig]):
    """loss = CE(student, label) + weight · mean over pairs of distance(projector(student's tokens), teacher's tokens).

    Romero et al. 2015 (FitNets), arXiv:1412.6550, equation 3, which calls student blocks guided layers and teacher
    blocks hints. Tokens are those between two blocks, before the next block's norm. A patch grid or feature map of the
    teacher of another size is resampled to the student's grid, bilinearly. Prefix tokens are left out, but for the
    class token on request. Where tokens were merged, each patch place shows the token that it went into.

    The projectors run inside the student's forward pass and are no part of the network as deployed.
    """

    kind = "distillation"
    paper = "Romero et al. 2015, arXiv:1412.6550"
    neutral: ClassVar = {"weight": 0.0}
    examples = (
        {},
        {"pairs": [[1, 1], [3, 3]], "loss": "cosine", "class_token": True},
        {"loss": "l1", "projector": "conv"},
    )
    deployed = False
    Config = FeatureConfig

    def pairs(self, facts: Facts) -> Pairs:
        """(student block, teacher block) of every comparison."""
        return last_pair(facts) if self.config.pairs is None else self.config.pairs

    def claims(self, facts: Facts) -> Claims:
        """Reads the student's and the teacher's tokens after the paired blocks."""
        pairs = self.pairs(facts)
        needs = at_blocks(TAP, (s for s, _ in pairs)) | at_blocks(TEACHER_TAP, (t for _, t in pairs))
        if not self.config.class_token:
            return Claims(needs=needs)
        if (teacher := facts.teacher) and not (teacher.family == "vit" and teacher.has_class_token):
            raise OptionError(
                self.name,
                "class_token",
                f"the features of the teacher `{teacher.model}` hold no class token",
                "false with this teacher",
                "Write `class_token: false`: the patches are compared alone.",
            )
        return Claims(needs=needs | {Claim(CLASS_TOKEN)})

    def wrap(self, student: Student, facts: Facts) -> None:
        """Give the student one projector a pair."""
        from strategies.distillation.projectors import Projectors

        assert facts.teacher is not None, "claims ask for a teacher"
        projectors = Projectors(
            self.pairs(facts),
            facts.student.tap_widths,
            facts.teacher.tap_widths,
            conv=self.config.projector == "conv",
            class_token=self.config.class_token,
        )
        like = next(student.model.parameters())
        student.extras[self.name] = projectors.to(like.device, like.dtype)
        student.readouts[self.name] = projectors

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `feature`: the mean over pairs."""
        import torch

        from strategies.distillation.feature_distance import distance, grid_size, grid_tokens
        from strategies.distillation.projectors import blocks_of

        assert teacher is not None, "claims ask for a teacher"
        distances = []
        for key, projected in out.readouts[self.name].items():
            student_block, teacher_block = blocks_of(key)
            size = grid_size(out.features[student_block], out.num_prefix_tokens)
            hint = teacher.features[teacher_block]
            aim = grid_tokens(hint, teacher.num_prefix_tokens, class_token=self.config.class_token, size=size)
            distances.append(distance(self.config.loss, projected, aim))
        return {"feature": torch.stack(distances).mean()}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"feature": self.config.weight}
