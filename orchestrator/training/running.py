"""The network in training with everything that follows its shapes, and how all of it gets smaller with the network.

A strategy may ask for a smaller network in the middle of a stage (`Strategy.moments`, `Strategy.cut`). Then a network
is composed anew at the smaller shapes and takes over what is left of the weights; average, optimiser, schedule and
wrappers are made for it, and take over what is left of theirs. So a stage that goes on from its progress needs the
shapes alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from orchestrator.planning.plan import TrainStage
from orchestrator.training.average import WeightAverage
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.network import Networks, recomposed
from orchestrator.training.optimizer import make_optimizer, make_schedule
from orchestrator.training.precision import Precision
from orchestrator.training.progress import Trainable
from strategies.api import Strategy
from strategies.backbone import Student
from strategies.carry import Carry
from strategies.gradients import Gradients
from strategies.shapes import Shapes
from strategies.surgery import Cut

log = logging.getLogger(__name__)


class Running:
    """What a stage trains.

    Attributes:
        student: the network.
        strategies: those attached to it, in the order in which they act.
        optimizer, schedule: of its parameters; no schedule in a stage of 0 epochs.
        ema: the average of its weights, if there is one.
        forward: the student, compiled and averaging gradients over workers as far as the stage asks for it.
        parameters: those that are trained.
    """

    def __init__(self, stage: TrainStage, networks: Networks, group: WorkerGroup, steps_per_epoch: int) -> None:
        self.stage, self.networks, self.group, self.steps_per_epoch = stage, networks, group, steps_per_epoch
        self._take(networks.student, networks.strategies)

    def _take(self, student: Student, strategies: list[Strategy[Any]]) -> None:
        """Make everything that follows from a network."""
        training = self.stage.training
        self.student, self.strategies = student, strategies
        self.optimizer = make_optimizer(student, training.optimizer)
        self.ema = WeightAverage(student, decay=training.ema) if training.ema is not None else None
        self.schedule: Scheduler | None = None
        if self.steps_per_epoch * training.epochs:
            self.schedule = make_schedule(self.optimizer, training, self.steps_per_epoch)
        if training.compile:
            torch.compiler.reset()  # else a lane's tenth stage would find the limit of graphs for one function reached
        compiled: Any = torch.compile(student) if training.compile else student
        self.forward: nn.Module = self.group.parallel(compiled)
        self.parameters = [p for p in student.parameters() if p.requires_grad]

    @property
    def evaluated(self) -> Student:
        """The network that is evaluated and kept."""
        averaged: Student = self.student if self.ema is None else self.ema.module
        return averaged

    @property
    def rate(self) -> float:
        """The learning rate now, of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def trainable(self, precision: Precision) -> Trainable:
        """The tensors that change in training."""
        return Trainable(self.student, self.optimizer, precision.scaler, self.ema)

    def begin_at(self, shapes: Shapes) -> None:
        """Take a network of these shapes, whose weights are loaded afterwards."""
        if shapes != self.student.shapes:
            self._take(*recomposed(self.stage, self.networks, shapes))

    def cut_at(self, step: int, gradients: Callable[[int], Gradients]) -> None:
        """Let every strategy cut that asks for it before this step.

        Args:
            gradients: of the loss, over so many images.
        """
        for position, strategy in enumerate(self.strategies):
            for moment, epochs in enumerate(strategy.moments()):
                if round(epochs * self.steps_per_epoch) == step:
                    acting = self.strategies[position]  # one before it may have had all composed anew
                    images = acting.calibration()
                    known = gradients(images) if images else None
                    cut = acting.cut(self.student, self.networks.facts, moment, known)
                    if cut is not None:
                        self._cut(cut)

    def _cut(self, cut: Cut) -> None:
        """Go on with a part of the network."""
        carry, before, average, optimizer = Carry(self.student, cut), self.student, self.ema, self.optimizer
        self._take(*recomposed(self.stage, self.networks, cut.shapes))
        self.student.train()
        anew = carry.load(self.student, before.state_dict())
        if anew:
            log.warning("stage `%s`: after pruning these begin anew: %s", self.stage.label, ", ".join(anew))
        if average is not None:
            assert self.ema is not None, "the stage has an average or it has none"
            self.ema.module.load_state_dict(self.student.state_dict())
            carry.load(self.ema.module, average.module.state_dict())
        carry_optimizer(carry, before, optimizer, self.student, self.optimizer)


def carry_optimizer(
    carry: Carry,
    before: nn.Module,
    optimizer_before: torch.optim.Optimizer,
    after: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Take over what is left of an optimiser's state: averages are cut like the weights that they are of.

    Where heads get narrower, the queries' averages are of weights that were scaled since; training soon forgets that.
    """
    new = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        state, renamed = optimizer_before.state.get(parameter), carry.name(name)
        if not state or renamed is None or renamed not in new:
            continue
        target, kept = new[renamed], {}
        for key, value in state.items():
            same = not isinstance(value, Tensor) or value.shape != parameter.shape
            kept[key] = value if same else carry.tensor(name, value, target.shape)
        if all(value is not None for value in kept.values()):
            optimizer.state[target] = kept
    # Some optimisers count their steps for a whole group.
    for group in optimizer.param_groups:
        group.update({k: v for k, v in optimizer_before.param_groups[0].items() if k == "step"})
