"""Response distillation: the student learns the teacher's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from specs.strategy import StrategyConfig
from strategies.api import TEACHER_LOGITS, Claim, Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.state import Output


ResponseKind = Literal["soft", "hard", "decoupled", "normalized", "relational"]

WEIGHTS: dict[str, dict[str, float]] = {
    "decoupled": {"target_weight": 1.0, "nontarget_weight": 1.0},
    "normalized": {"target_weight": 1.0, "nontarget_weight": 1.5},
    "relational": {"inter_weight": 1.0, "intra_weight": 1.0},
}
"""Kind → the weights of its parts, with their defaults."""


class ResponseConfig(StrategyConfig):
    """Options of `response`."""

    name: Literal["response"] = "response"
    """Always `response`."""

    kind: ResponseKind = "soft"
    """`soft`: T²·KL to the teacher's distribution, averaged over images. `hard`: cross-entropy on the class that the
    teacher predicts. `decoupled` (DKD): KL of "target class or not" and KL among the other classes, weighted apart.
    `normalized` (NKD): the teacher's trust in the target class, and cross-entropy among the other classes.
    `relational` (DIST): correlation with the teacher over an image's classes, and over a class's images."""

    temperature: float = Field(default=3.0, gt=0)
    """T: divides both logits before the softmax; higher shows more of the teacher's ranking of wrong classes. No unit.
    `hard` has none. On ImageNet, `decoupled`, `normalized` and `relational` were published with 1."""

    target_weight: float | None = Field(default=None, ge=0)
    """Weight of the target class's term: α of `decoupled`, factor on t_y log s_y of `normalized`. `null` = 1. Only for
    these two."""

    nontarget_weight: float | None = Field(default=None, ge=0)
    """Weight of the other classes' term: β of `decoupled` (published: 0.5 on ImageNet, 2 to 8 on CIFAR-100), γ of
    `normalized`. `null` = 1 for `decoupled`, 1.5 for `normalized`. Only for these two."""

    inter_weight: float | None = Field(default=None, ge=0)
    """Weight of `relational`'s correlation over the classes of an image. `null` = 1. Only for `relational`."""

    intra_weight: float | None = Field(default=None, ge=0)
    """Weight of `relational`'s correlation over the images of a class, among those that a worker has in a micro-batch.
    `null` = 1. Only for `relational`."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the distillation term; the task's cross-entropy gets 1 − alpha. 0 = no distillation.
    `decoupled`, `normalized` and `relational` were published with the sum of both: ½ keeps that proportion."""

    @model_validator(mode="after")
    def _weights_fit_the_kind(self) -> ResponseConfig:
        for option in ("target_weight", "nontarget_weight", "inter_weight", "intra_weight"):
            if getattr(self, option) is not None and option not in WEIGHTS.get(self.kind, {}):
                kinds = " or ".join(f"`kind: {kind}`" for kind, own in WEIGHTS.items() if option in own)
                raise ValueError(f"`{option}` is no weight of `kind: {self.kind}`; leave it out, or write {kinds}")
        return self

    def weight_of(self, option: str) -> float:
        """The weight of a part of the loss, as written or by default."""
        written: float | None = getattr(self, option)
        return WEIGHTS[self.kind][option] if written is None else written


class Response(Strategy[ResponseConfig]):
    """loss = (1 − alpha) · CE(student, label) + alpha · distillation(student, teacher).

    Hinton et al. 2015, arXiv:1503.02531 (`soft`); Touvron et al. 2021, arXiv:2012.12877, equations 2 and 3 (`soft` and
    `hard`); Zhao et al. 2022, arXiv:2203.08679 (`decoupled`); Yang et al. 2023, arXiv:2303.13005 (`normalized`); Huang
    et al. 2022, arXiv:2205.10536 (`relational`). The published soft recipe of DeiT (T = 3, weight 0.1) divides the term
    by the number of classes as well; to repeat it, divide its weight by that number.

    With mixed images (mixup, CutMix) the teacher sees the mixed image too, so its answer fits; `decoupled` and
    `normalized` also need to know the target class, and take the one with the larger share.
    """

    kind = "distillation"
    paper = (
        "Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Zhao et al. 2022, arXiv:2203.08679; "
        "Yang et al. 2023, arXiv:2303.13005; Huang et al. 2022, arXiv:2205.10536"
    )
    neutral: ClassVar = {"alpha": 0.0}
    examples = (
        {},
        {"kind": "soft", "temperature": 1.0, "alpha": 0.9},
        {"kind": "hard"},
        {"kind": "decoupled", "temperature": 4.0, "nontarget_weight": 8.0},
        {"kind": "normalized", "temperature": 1.0},
        {"kind": "relational", "temperature": 1.0, "intra_weight": 2.0},
    )
    Config = ResponseConfig

    def claims(self, facts: Facts) -> Claims:
        """Reads the teacher's logits."""
        return Claims(needs=frozenset({Claim(TEACHER_LOGITS)}))

    def compares_images(self) -> bool:
        """`relational` correlates the images of a class."""
        return self.config.kind == "relational" and self.config.weight_of("intra_weight") > 0

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `distillation`."""
        from strategies.distillation import logits

        assert teacher is not None, "claims ask for a teacher"
        c = self.config
        ours, theirs = out.logits, teacher.logits
        if c.kind == "decoupled" or c.kind == "normalized":
            split = logits.decoupled_distillation if c.kind == "decoupled" else logits.normalized_distillation
            weights = c.weight_of("target_weight"), c.weight_of("nontarget_weight")
            term = split(ours, theirs, target, c.temperature, *weights)
        elif c.kind == "relational":
            weights = c.weight_of("inter_weight"), c.weight_of("intra_weight")
            term = logits.relational_distillation(ours, theirs, c.temperature, *weights)
        else:
            term = logits.logit_distillation(c.kind, ours, theirs, c.temperature)
        return {"distillation": term}

    def weights(self) -> dict[str, float]:
        """alpha for the term, 1 − alpha for the task."""
        return {"task": 1 - self.config.alpha, "distillation": self.config.alpha}
