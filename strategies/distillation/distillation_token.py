"""DeiT's distillation token: a second token and head that learn from the teacher, the class token from labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from specs.strategy import StrategyConfig
from strategies.api import DISTILLATION_TOKEN, TEACHER_LOGITS, Claim, Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class DistillationTokenConfig(StrategyConfig):
    """Options of `distillation_token`."""

    name: Literal["distillation_token"] = "distillation_token"
    """Always `distillation_token`."""

    kind: Literal["hard", "soft"] = "hard"
    """`hard`: the head learns the class that the teacher predicts. `soft`: T²·KL to the teacher's distribution."""

    temperature: float = Field(default=3.0, gt=0)
    """T of `soft`. No unit; `hard` has none."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the distillation head's loss; the class head's cross-entropy gets 1 − alpha. DeiT: ½."""


class DistillationToken(Strategy[DistillationTokenConfig]):
    """loss = (1 − alpha) · CE(class head, label) + alpha · distillation(distillation head, teacher).

    In evaluation the answer is the mean of both heads' logits. Touvron et al. 2021, arXiv:2012.12877, section 4 (the
    paper adds the two softmax outputs; its code, timm and this file average logits).

    The token stands behind the network's own prefix tokens and is no patch: pooling never sees it, token reduction
    never touches it. It needs no class token: with average pooling the pooled patches take the class token's part. A
    network that timm built with a distillation token (`deit_*_distilled_*`) keeps its own token and head, and nothing
    is added.

    There is no neutral option: even with `alpha` 0 the network has a token and a head more.
    """

    kind = "distillation"
    paper = "Touvron et al. 2021, arXiv:2012.12877"
    examples = ({}, {"kind": "soft", "temperature": 2.0, "alpha": 0.3})
    Config = DistillationTokenConfig

    def claims(self, facts: Facts) -> Claims:
        """Owns the distillation token, reads the teacher's logits."""
        return Claims(
            owns=frozenset({Claim(DISTILLATION_TOKEN)}),
            needs=frozenset({Claim(TEACHER_LOGITS)}),
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Add token and head, or use those that timm built in."""
        from strategies.backbone import VisionTransformerStudent
        from strategies.distillation.second_token import SecondToken

        assert isinstance(student, VisionTransformerStudent), "claims refuse networks without this seam"
        if facts.student.has_distillation_token:
            student.split_heads = True
            return
        token = SecondToken(student.model)
        student.extras[self.name] = token
        student.embedding.append(token.embed)
        student.heads.append(token.answer)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `distillation`, on the distillation head alone."""
        from strategies.distillation.logits import logit_distillation

        assert teacher is not None, "claims ask for a teacher"
        assert out.distillation_logits is not None, "wrap gave the network a distillation head"
        c = self.config
        return {"distillation": logit_distillation(c.kind, out.distillation_logits, teacher.logits, c.temperature)}

    def weights(self) -> dict[str, float]:
        """alpha for the distillation head, 1 − alpha for the task."""
        return {"task": 1 - self.config.alpha, "distillation": self.config.alpha}
