"""Trained networks as files: `model.safetensors` and `model.json`.

Tensors are the timm network's under timm's keys, and the strategies' under `extras.<strategy>.`. The JSON says how to
build the network that they fit: timm model, pruned shapes, strategies, and what was known of the teacher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.errors import StoreError
from specs.model import ModelSpec
from specs.strategy import StrategyConfig
from strategies import registry
from strategies.api import Strategy
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts, ModelFacts
from strategies.shapes import Shapes

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class SavedNetwork:
    """A network as it lies in a folder, not yet built."""

    model: ModelSpec
    """The timm network, its arguments complete; `pretrained` is false, as the weights are in `state`."""
    shapes: Shapes
    """What pruning left of it."""
    strategies: tuple[StrategyConfig, ...]
    num_classes: int
    teacher: ModelFacts | None
    other_teachers: tuple[ModelFacts, ...]
    state: dict[str, Tensor]
    """What `Student.network_state` gave."""

    @property
    def teachers(self) -> tuple[ModelFacts, ...]:
        """All teachers that it was composed with."""
        return () if self.teacher is None else (self.teacher, *self.other_teachers)


def plain_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def save_network(
    folder: Path,
    student: Student,
    model: ModelSpec,
    strategies: Sequence[StrategyConfig],
    num_classes: int,
    teachers: Sequence[ModelFacts] = (),
) -> None:
    """Write a network into a folder.

    Args:
        model: the timm network, its arguments complete.
        strategies: options of the strategies attached to it, in the spec's order.
        teachers: facts of the teachers it was composed with; strategies sized their modules by them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain_tensors(student.network_state()), folder / WEIGHTS)
    description = {
        "format_version": FORMAT_VERSION,
        "model": model.model_dump(mode="json"),
        "shapes": student.shapes.to_json(),
        "strategies": [config.model_dump(mode="json") for config in strategies],
        "num_classes": num_classes,
        "teacher": asdict(teachers[0]) if teachers else None,
        "other_teachers": [asdict(teacher) for teacher in teachers[1:]],
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on CPU.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path} is no readable safetensors file: {error}. Give another checkpoint; "
            "or, if it is a stage's, delete the stage's folder, and `slimvit run` computes it anew."
        ) from error
    return tensors


def read_json(path: Path, format_version: int) -> dict[str, Any]:
    """A description written beside tensors.

    Raises:
        StoreError: if it is missing, damaged or of another format.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is no readable description of a checkpoint: {error}") from error
    found = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != format_version:
        raise StoreError(
            f"{path} has format {found!r}, and this version of slimvit reads format {format_version}; "
            "run the stage again, or use the version that wrote it"
        )
    return content


def read_network(folder: Path) -> SavedNetwork:
    """Read a saved network without building it.

    Raises:
        StoreError: if a file is missing, damaged or of another format.
    """
    content = read_json(folder / DESCRIPTION, FORMAT_VERSION)
    try:
        configs = tuple(
            registry.resolver(entry["name"]).model_validate_json(json.dumps(entry)) for entry in content["strategies"]
        )
        teacher = content["teacher"]
        return SavedNetwork(
            model=ModelSpec.model_validate(content["model"]).model_copy(update={"pretrained": False}),
            shapes=Shapes.from_json(content["shapes"]),
            strategies=configs,
            num_classes=int(content["num_classes"]),
            teacher=None if teacher is None else _facts(teacher),
            other_teachers=tuple(_facts(other) for other in content.get("other_teachers", [])),
            state=read_tensors(folder / WEIGHTS),
        )
    except (KeyError, TypeError, AttributeError, ValidationError, ValueError) as error:
        raise StoreError(f"{folder / DESCRIPTION} does not describe a network: {error}") from error


def _facts(fields: dict[str, Any]) -> ModelFacts:
    return ModelFacts(**fields | {"tap_widths": tuple(fields["tap_widths"])})


def load_network(folder: Path) -> Student:
    """Rebuild a network from an artefact, in eval mode, on CPU, its knobs as at the end of the stage.

    Raises:
        StoreError: if a file is missing, damaged, of another format, or does not hold the network's tensors.
    """
    saved = read_network(folder)
    strategies: list[Strategy[Any]] = [registry.build(config) for config in saved.strategies]
    facts = Facts.of(facts_of(saved.model), saved.shapes, saved.teachers)
    student = compose(build_model(saved.model, saved.shapes), strategies, facts, restored=True)
    try:
        student.load_network_state(saved.state)
    except RuntimeError as error:
        raise StoreError(f"{folder / WEIGHTS} does not hold the tensors of this network: {error}") from error
    for strategy in strategies:
        strategy.at(student, 1.0)
    return student.eval()
