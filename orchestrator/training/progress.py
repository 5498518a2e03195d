"""Unfinished stages as files: `progress/<digest>/<step>` with `state.safetensors` and `state.json`.

All tensors are in the safetensors file, all numbers in the JSON. There is no generator state: randomness is a function
of the seed and the step (`seeding`), so a stage resumes exactly, on another number of workers too.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from orchestrator.training.average import WeightAverage
from orchestrator.training.checkpoint import plain_tensors, read_json, read_tensors
from strategies.backbone import Student
from strategies.shapes import Shapes

FORMAT_VERSION = 2
KEPT = 2
log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a stage is; everything about it that is no tensor."""

    step: int = 0
    """Optimiser steps done."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One `Progress` an epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Loss sums of all workers in the unfinished epoch."""
    training_s: float = 0.0
    """Seconds in the training loop, without evaluation and checkpoints."""
    total_s: float = 0.0
    """Seconds in the stage."""
    device_s: float = 0.0
    """Seconds in the stage times workers, whose number may have changed on the way."""
    teacher_s: float = 0.0
    """Seconds in which the teacher answered, on one worker."""


@dataclass
class Trainable:
    """The tensors that change in training."""

    student: Student
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by a name that says whose they are."""
        named = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        if self.ema is not None:
            named |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        state = self.optimizer.state_dict()
        for i, values in state["state"].items():
            named |= {f"optimizer.{i}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        for i, group in enumerate(state["param_groups"]):
            named |= {f"groups.{i}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}
        return plain_tensors(named)

    def numbers(self) -> dict[str, Any]:
        """What optimiser and scaler hold besides tensors."""
        state = self.optimizer.state_dict()
        return {
            "optimizer": {str(i): _numbers(values) for i, values in state["state"].items()},
            "groups": [_numbers(group) for group in state["param_groups"]],
            "scaler": self.scaler.state_dict(),
        }

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take over what `tensors` and `numbers` gave.

        Raises:
            RuntimeError, KeyError, ValueError: if they belong to another network or optimiser.
        """
        parts: dict[str, dict[str, Tensor]] = {"student": {}, "ema": {}, "optimizer": {}, "groups": {}}
        for name, tensor in tensors.items():
            owner, _, key = name.partition(".")
            parts[owner][key] = tensor
        self.student.load_state_dict(parts["student"])
        if self.ema is not None:
            self.ema.module.load_state_dict(parts["ema"])
        state = self.optimizer.state_dict()
        values = {int(i): dict(v) for i, v in numbers["optimizer"].items()}
        groups = [
            {**{k: _like(own[k], v) for k, v in saved.items()}, "params": own["params"]}
            for own, saved in zip(state["param_groups"], numbers["groups"], strict=True)
        ]
        for where, target in (("optimizer", values), ("groups", groups)):
            for name, tensor in parts[where].items():
                index, _, key = name.partition(".")
                target[int(index)][key] = tensor
        self.optimizer.load_state_dict({"state": values, "param_groups": groups})
        self.scaler.load_state_dict(numbers["scaler"])


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != "params" and not isinstance(v, Tensor)}


def _like(own: Any, saved: Any) -> Any:
    """JSON has no tuples; optimisers compare with them."""
    return tuple(saved) if isinstance(own, tuple) else saved


class ProgressStore:
    """The progress of one stage in the artefact store; the last two checkpoints are kept."""

    def __init__(self, store: ArtifactStore, digest: str, scratch: Path) -> None:
        self.store, self.prefix, self.scratch = store, f"progress/{digest}", scratch

    def save(self, position: Position, trainable: Trainable) -> None:
        """Commit a checkpoint, then drop all but the last two."""
        name = self._name(position.step)
        if self.store.committed(name):
            return
        folder = self.scratch / "progress"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file(trainable.tensors(), folder / "state.safetensors")
        content = {
            "format_version": FORMAT_VERSION,
            "position": asdict(position),
            "shapes": trainable.student.shapes.to_json(),
            "numbers": trainable.numbers(),
        }
        (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")
        self.store.commit(name, folder)
        for old in self._names()[:-KEPT]:
            self.store.delete(old)

    def latest_sound(self) -> int:
        """Step of the last undamaged checkpoint, 0 without one. Damaged ones are deleted: the one before them leads
        to the same result."""
        for name in reversed(self._names()):
            try:
                self.store.fetch(name)
            except ValueError as error:
                log.warning("going on from an earlier checkpoint: %s", error)
                self.store.delete(name)
            else:
                return int(name.rsplit("/", 1)[1])
        return 0

    def shapes(self, step: int) -> Shapes:
        """What pruning had left of the student at a checkpoint.

        Raises:
            StoreError: if it is damaged or of another format.
        """
        folder, content = self._read(step)
        try:
            return Shapes.from_json(content["shapes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{folder / 'state.json'} does not say the shapes: {error!r}; delete {folder}") from error

    def _read(self, step: int) -> tuple[Path, dict[str, Any]]:
        try:
            folder = self.store.fetch(self._name(step))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"cannot resume: {error}") from error
        return folder, read_json(folder / "state.json", FORMAT_VERSION)

    def load(self, step: int, trainable: Trainable) -> Position:
        """Go back to a checkpoint.

        Raises:
            StoreError: if it is damaged, of another format, or of another network.
        """
        name = self._name(step)
        folder, content = self._read(step)
        try:
            trainable.load(read_tensors(folder / "state.safetensors"), content["numbers"])
            return Position(**content["position"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the checkpoint `{name}` belongs to another network or optimiser: {error}. "
                f"Delete {folder} to begin anew."
            ) from error

    def clear(self) -> None:
        """Delete all checkpoints of the stage."""
        for name in self._names():
            self.store.delete(name)

    def _name(self, step: int) -> str:
        return f"{self.prefix}/{step:09d}"

    def _names(self) -> list[str]:
        return sorted(self.store.names(self.prefix))
