"""Several teachers that see differently, and a token of the student's for each."""

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


class CrossInductiveBiasConfig(StrategyConfig):
    """Options of `cross_inductive_bias`."""

    name: Literal["cross_inductive_bias"] = "cross_inductive_bias"
    """Always `cross_inductive_bias`."""

    temperature: float = Field(default=3.0, gt=0)
    """T: divides the logits of student and teachers before the softmax. No unit."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the mean over the teachers' terms; the class head's cross-entropy gets 1 − alpha."""


class CrossInductiveBias(Strategy[CrossInductiveBiasConfig]):
    """loss = (1 − alpha) · CE(class head, label) + alpha · mean over teachers i of T²·KL(teacher i ‖ head of token i).

    Ren et al. 2022 (CivT), arXiv:2106.12378: teachers of different inductive bias (there a network of convolutions and
    one of involutions) advise one student, which has one token more for each of them. The stage says who they are:
    `teacher` is the first, `teacher.also` lists the others. In evaluation the answer is the mean of all heads' logits.

    With one teacher it is `distillation_token` of kind `soft`. The tokens stand behind the network's own prefix tokens,
    in the teachers' order, and are no patches: pooling never sees them, token reduction never touches them. There is
    no neutral option: even with `alpha` 0 the network has tokens and heads more.
    """

    kind = "distillation"
    paper = "Ren et al. 2022, arXiv:2106.12378"
    examples = ({}, {"temperature": 1.0, "alpha": 0.3})
    Config = CrossInductiveBiasConfig

    def claims(self, facts: Facts) -> Claims:
        """Owns the tokens added for teachers; reads every teacher's logits."""
        teachers = range(max(1, len(facts.teachers)))
        return Claims(
            owns=frozenset({Claim(DISTILLATION_TOKEN)}),
            needs=frozenset(Claim(TEACHER_LOGITS, teacher=i) for i in teachers),
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Add a token and a head for each teacher."""
        from strategies.backbone import VisionTransformerStudent
        from strategies.distillation.teacher_tokens import TeacherTokens

        assert isinstance(student, VisionTransformerStudent), "claims refuse networks without this seam"
        tokens = TeacherTokens(student.model, len(facts.teachers), self.name)
        student.extras[self.name] = tokens
        student.embedding.append(tokens.embed)
        student.heads.append(tokens.answer)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `distillation`: the mean over teachers."""
        import torch

        from strategies.distillation.logits import soft_distillation

        assert teacher is not None, "claims ask for a teacher"
        answers, temperature = out.readouts[self.name], self.config.temperature
        terms = [
            soft_distillation(answers[str(i)], one.logits, temperature)
            for i, one in enumerate((teacher, *teacher.others))
            if str(i) in answers  # other strategies may ask for teachers of their own
        ]
        return {"distillation": torch.stack(terms).mean()}

    def weights(self) -> dict[str, float]:
        """alpha for the teachers, 1 − alpha for the task."""
        return {"task": 1 - self.config.alpha, "distillation": self.config.alpha}
