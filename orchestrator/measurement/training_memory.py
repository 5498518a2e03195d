"""Peak memory of one worker while it trains a stage: real networks, losses, precision and optimiser, random images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from cluster.storage import ArtifactSource
from orchestrator.measurement.compute import weight_bytes
from orchestrator.measurement.growth import growth
from orchestrator.measurement.memory import Memory, TrainingJob
from orchestrator.planning.plan import TrainStage
from orchestrator.training.mixing import Mixing
from orchestrator.training.network import assemble
from orchestrator.training.optimizer import make_optimizer
from orchestrator.training.order import accumulation_steps
from orchestrator.training.precision import Precision
from orchestrator.training.seeding import determinism
from specs.strategy import RESOLVER_KEY
from strategies import registry
from strategies.losses import total_loss

ENOUGH_MICRO_STEPS = 2
"""Passes before an update that are run: from the second on there are gradients to add to, and more change nothing."""


@dataclass(frozen=True)
class Training:
    """How a network on the bench was trained.

    Attributes:
        stage: its training stage, the last of the combination.
        store: has the stages that this one reads.
        workers: those that trained together.
    """

    stage: TrainStage
    store: ArtifactSource
    workers: int = 1

    @property
    def why_not(self) -> str | None:
        """Why there is no step to measure, if so."""
        return None if self.stage.training.epochs else "the stage trains for 0 epochs"

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes before an update, on each worker."""
        training = self.stage.training
        mixing = bool(training.augmentation.mixup or training.augmentation.cutmix)
        return accumulation_steps(training.batch_size, training.micro_batch, self.workers, mixing)

    @property
    def micro_batch(self) -> int:
        """Images a forward pass, on each worker."""
        return self.stage.training.batch_size // (self.micro_steps * self.workers)

    @property
    def conditions(self) -> dict[str, JsonValue]:
        """What differs from the conditions of the bench. Nothing is compiled."""
        return {
            "images": "random images",
            "input_size": self.stage.data.image_size,
            "precision": self.stage.training.precision,
            "compile": False,
            "batch_size": self.micro_batch,
        }

    def job(self, threads: int) -> TrainingJob:
        """For a process of its own.

        Raises:
            ValueError, FileNotFoundError: if a stage that this one reads is missing or damaged.
        """
        names = [f"stages/{digest}" for digest in self.stage.parents]
        return TrainingJob(
            stage=self.stage.model_dump(mode="json"),
            parents={name: self.store.fetch(name) for name in names},
            batch_size=self.micro_batch,
            micro_steps=min(self.micro_steps, ENOUGH_MICRO_STEPS),
            threads=threads,
        )

    def peak(self, device: torch.device) -> Memory:
        """In this process; see `training_peak`."""
        with determinism(device, torch.get_num_threads()):
            micro_steps = min(self.micro_steps, ENOUGH_MICRO_STEPS)
            return training_peak(self.stage, self.store, device, self.micro_batch, micro_steps)


class FetchedStages:
    """Stages that have been fetched from a store already, for a process that cannot reach it."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    def fetch(self, name: str, files: Collection[str] | None = None) -> Path:
        """The folder; its digests were verified when it was fetched."""
        return self.folders[name]


def read_stage(text: str | bytes) -> TrainStage:
    """A stage as in the `stage.json` of its artefact."""
    return TrainStage.model_validate_json(text, context={RESOLVER_KEY: registry.resolver})


def training_peak(
    stage: TrainStage, store: ArtifactSource, device: torch.device, batch_size: int, micro_steps: int
) -> Memory:
    """Peak over steps of a stage, eager and on one worker; raises torch's error when memory runs out.

    The first step sets up kernels and the optimiser's state; growth is taken over later ones. Gradients are made anew
    in every step, so growth holds them; what remains of it are activations, and what the losses and the update need for
    a moment.

    Args:
        store: has the stages that this one reads.
        batch_size: images a forward pass.
        micro_steps: passes before an update.

    Raises:
        SlimvitError: if the networks cannot be built, or the device lacks the stage's precision.
        MemoryUnreadable: where a CPU process cannot read its peak.
    """
    training = stage.training
    precision = Precision(training.precision, device)
    networks = assemble(stage, store, device)
    student, teacher, strategies = networks.student, networks.teacher, networks.strategies
    optimizer = make_optimizer(student, training.optimizer)
    average = ModelEmaV3(student, decay=training.ema) if training.ema is not None else None
    parameters = [p for p in student.parameters() if p.requires_grad]
    mixing = Mixing(training, stage.num_classes, stage.seed)
    side = stage.data.image_size
    images = torch.randn(batch_size, len(stage.data.mean), side, side, device=device)
    labels = torch.arange(batch_size, device=device) % stage.num_classes

    def step() -> None:
        for _ in range(micro_steps):
            pixels, target = mixing(images, labels, 0)
            with precision.autocast():
                out = student(pixels)
                with torch.no_grad():
                    taught = None if teacher is None else teacher(pixels)
                if networks.stored is not None:
                    taught = networks.stored.to_anything(batch_size)
            guide = None if taught is None else precision.full(taught)
            loss, _ = total_loss(strategies, precision.full(out), guide, target, training.label_smoothing)
            precision.backward(loss / micro_steps)
        precision.step(optimizer, parameters, training.clip_grad)
        if average is not None:
            average.update(student)

    student.train()
    for strategy in strategies:
        strategy.at(student, 0.0)
    step()
    grown = growth(device, step)
    held: list[nn.Module] = [n for n in (student, teacher, average) if n is not None]
    gradients = sum(p.numel() * p.element_size() for p in parameters)
    return Memory(
        weights=sum(map(weight_bytes, held)),
        activations=max(grown - gradients, 0),
        gradients=gradients,
        optimizer=_state_bytes(optimizer),
    )


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
