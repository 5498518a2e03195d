"""Exits that teach one another: late ones the early ones, without any teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from specs.strategy import StrategyConfig
from strategies.api import EXITS, Claim, Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.state import Output


class ExitsConfig(StrategyConfig):
    """Options of `exits`."""

    name: Literal["exits"] = "exits"
    """Always `exits`."""

    teachers: Literal["last", "later"] = "last"
    """Who teaches an exit: the network's last answer, or the mean over all later exits and the last answer."""

    temperature: float = Field(default=4.0, gt=0)
    """T: divides both logits before the softmax. No unit. The authors' code raises it while the last answer grows
    surer, and has a constant 4 as its alternative; here it is constant."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term beside the losses of the task and of `early_exit`, which keep theirs. 0 = no distillation."""


class Exits(Strategy[ExitsConfig]):
    """loss = losses of the exits + weight · mean over exits of T²·KL(later answer ‖ exit's answer).

    Phuong and Lampert 2019, "Distillation-Based Training for Multi-Exit Architectures", ICCV. Later answers are
    detached: they teach, and learn nothing from it. The exits are those of `early_exit`, which must act in the same
    stage; its own `distill: last` is the same idea at T = 1 with deep exits weighted more, so `distill: none` goes with
    this strategy. No teacher network and no labels are read, and the network stays as it is.
    """

    kind = "distillation"
    paper = (
        "Phuong and Lampert 2019, ICCV, pp. 1355–1364; KL with temperature as in Hinton et al. 2015, arXiv:1503.02531"
    )
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"teachers": "later", "temperature": 1.0, "weight": 0.5})
    beside: ClassVar = {"early_exit": {"blocks": [0, 2], "threshold": 0.15}}
    deployed = False
    Config = ExitsConfig

    def claims(self, facts: Facts) -> Claims:
        """Reads what another strategy's exits say."""
        return Claims(needs=frozenset({Claim(EXITS)}))

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `distillation`."""
        from strategies.distillation.logits import exits_distillation

        answers = [out.exits[block] for block in sorted(out.exits)]
        last_alone = self.config.teachers == "last"
        return {"distillation": exits_distillation(answers, out.logits, self.config.temperature, last_alone=last_alone)}

    def weights(self) -> dict[str, float]:
        """The task keeps its weight."""
        return {"distillation": self.config.weight}
