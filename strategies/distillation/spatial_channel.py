"""Cumulative spatial distillation: every patch learns what the teacher sees there, and later what it sees in all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from specs.strategy import StrategyConfig
from strategies.api import DENSE_LOGITS, TEACHER_DENSE_LOGITS, TEACHER_LOGITS, Claim, Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class SpatialChannelConfig(StrategyConfig):
    """Options of `spatial_channel`."""

    name: Literal["spatial_channel"] = "spatial_channel"
    """Always `spatial_channel`."""

    kind: Literal["hard", "soft"] = "hard"
    """`hard`: each place learns the class that the teacher's mixture finds likeliest. `soft`: T²·KL to the mixture."""

    temperature: float = Field(default=1.0, gt=0)
    """T of `soft`. No unit; `hard` has none."""

    decay: Literal["linear", "square", "cosine"] = "linear"
    """How the share of the teacher's local answer falls from 1 to 0 with progress p of the stage: 1 − p, (1 − p)², or
    cos(p·π/2)."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term beside the task's cross-entropy, which keeps weight 1. 0 = no distillation."""


class SpatialChannel(Strategy[SpatialChannelConfig]):
    """loss = CE(student, label) + weight · mean over places of distillation(student there, mixture there), with
    mixture = λ · teacher's answer there + (1 − λ) · teacher's answer to the image.

    Answers at a place are the classifier on the features of that place alone, for the student on its patches. Early in
    the stage λ is 1 and the teacher's local answers guide; at the end it is 0 and each patch learns the teacher's
    answer to the image. Zhao et al. 2023 (CSKD), arXiv:2307.08500; its recipe adds the strategy `distillation_token`.

    Both networks' answers are averaged over the coarser of their grids. The teacher may be any network whose
    classifier makes sense of single places: convolutional and hierarchical networks and Vision Transformers with
    average pooling; a class-token teacher never learned to classify patches. With mixed images the teacher sees the
    mixture, and nothing else is asked. Nothing is added to the network.
    """

    kind = "distillation"
    paper = "Zhao et al. 2023, arXiv:2307.08500"
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"kind": "soft", "temperature": 2.0, "decay": "cosine", "weight": 0.5})
    deployed = False
    Config = SpatialChannelConfig
    local_share: float = 1.0
    """λ; falls while the stage goes on."""

    def claims(self, facts: Facts) -> Claims:
        """Reads both networks' answers to each place, and the teacher's to the image."""
        return Claims(needs=frozenset({Claim(DENSE_LOGITS), Claim(TEACHER_DENSE_LOGITS), Claim(TEACHER_LOGITS)}))

    def at(self, student: Student, progress: float) -> None:
        """Let the local share fall. It acts on the losses alone, outside of the network."""
        if self.config.decay == "cosine":
            self.local_share = math.cos(progress * math.pi / 2)
        else:
            self.local_share = (1 - progress) ** (1 if self.config.decay == "linear" else 2)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `dense`."""
        from strategies.distillation.dense_labels import spatial_distillation

        assert teacher is not None, "claims ask for a teacher"
        assert out.dense_logits is not None, "claims ask for answers to each place"
        assert teacher.dense_logits is not None, "claims ask for answers to each place"
        c = self.config
        dense = spatial_distillation(
            out.dense_logits, teacher.dense_logits, teacher.logits, self.local_share, c.kind, c.temperature
        )
        return {"dense": dense}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"dense": self.config.weight}
