"""Deep mutual learning: students of one kind train together and teach one another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from specs.model import ModelSpec
from specs.strategy import StrategyConfig
from strategies.api import Claims, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class MutualConfig(StrategyConfig):
    """Options of `mutual`."""

    name: Literal["mutual"] = "mutual"
    """Always `mutual`."""

    peers: PositiveInt = 1
    """Further students that train beside the first one; each makes a step about as dear as a student more."""

    temperature: float = Field(default=1.0, gt=0)
    """T: divides all logits before the softmax. No unit; the paper has none, which is 1."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence from the other students beside each student's own cross-entropy. 0 = nobody teaches."""


class Mutual(Strategy[MutualConfig]):
    """Every student k of K: loss = CE(k, label) + weight · mean over the others l of T²·KL(l ‖ k).

    Zhang et al. 2018, arXiv:1706.00384. There is no teacher: the students differ in how they were
    initialised, and see the same images. In its own loss each takes the others' answers as given.

    The peers are networks of the first student's kind (pruned alike), initialised as timm does, also where the first
    student begins pretrained or trained. What other strategies attach acts on the first student alone, which is the one
    that is evaluated and deployed; the peers are left behind in the training stage.
    """

    kind = "distillation"
    paper = "Zhang et al. 2018, arXiv:1706.00384"
    version = 2
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"peers": 2, "temperature": 2.0, "weight": 0.5})
    deployed = False
    Config = MutualConfig

    def claims(self, facts: Facts) -> Claims:
        """Claims nothing: it reads the student's own logits, which every network has."""
        return Claims()

    def wrap(self, student: Student, facts: Facts) -> None:
        """Let the peers run beside the student in training."""
        from strategies.compose import build_model
        from strategies.distillation.peers import Peers

        untrained = ModelSpec(model=facts.student.model, args=json.loads(facts.student.args))
        peers = Peers([build_model(untrained, student.shapes) for _ in range(self.config.peers)])
        student.extras[self.name] = peers
        student.companions[self.name] = peers

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`student`: how far the first student is from the peers; `peers`: the peers' own losses, added up."""
        import torch
        import torch.nn.functional as F

        from strategies.distillation.peers import divergence_from_others

        everyone = [out.logits, *out.readouts[self.name].values()]
        divergences = [divergence_from_others(everyone, k, self.config.temperature) for k in range(len(everyone))]
        own = [F.cross_entropy(logits.float(), target) for logits in everyone[1:]]
        peers = torch.stack(own).sum() + self.config.weight * torch.stack(divergences[1:]).sum()
        return {"student": divergences[0], "peers": peers}

    def weights(self) -> dict[str, float]:
        """The peers' losses move the peers alone, so that their weight is no choice."""
        return {"student": self.config.weight, "peers": 1.0}
