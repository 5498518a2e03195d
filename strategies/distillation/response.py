"""Response distillation: the student learns the teacher's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from specs.strategy import StrategyConfig
from strategies.api import TEACHER_LOGITS, Claim, Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.state import Output


class ResponseConfig(StrategyConfig):
    """Options of `response`."""

    name: Literal["response"] = "response"
    """Always `response`."""

    kind: Literal["soft", "hard"] = "soft"
    """`soft`: T²·KL to the teacher's distribution, averaged over images. `hard`: cross-entropy on the class that the
    teacher predicts."""

    temperature: float = Field(default=3.0, gt=0)
    """T: divides both logits before the softmax; higher shows more of the teacher's ranking of wrong classes. No unit.
    Only for `soft`."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the distillation term; the task's cross-entropy gets 1 − alpha. 0 = no distillation."""


class Response(Strategy[ResponseConfig]):
    """loss = (1 − alpha) · CE(student, label) + alpha · distillation(student, teacher).

    Hinton et al. 2015, arXiv:1503.02531 (`soft`); Touvron et al. 2021, arXiv:2012.12877, equations 2 and 3 (both). The
    published soft recipe of DeiT (T = 3, weight 0.1) divides the term by the number of classes as well; to repeat it,
    divide its weight by that number.
    """

    kind = "distillation"
    paper = "Hinton, Vinyals and Dean 2015, arXiv:1503.02531"
    neutral: ClassVar = {"alpha": 0.0}
    examples = ({}, {"kind": "soft", "temperature": 1.0, "alpha": 0.9}, {"kind": "hard"})
    Config = ResponseConfig

    def claims(self, facts: Facts) -> Claims:
        """Reads the teacher's logits."""
        return Claims(needs=frozenset({Claim(TEACHER_LOGITS)}))

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `distillation`."""
        from strategies.distillation.logits import logit_distillation

        assert teacher is not None, "claims ask for a teacher"
        c = self.config
        return {"distillation": logit_distillation(c.kind, out.logits, teacher.logits, c.temperature)}

    def weights(self) -> dict[str, float]:
        """alpha for the term, 1 − alpha for the task."""
        return {"task": 1 - self.config.alpha, "distillation": self.config.alpha}
