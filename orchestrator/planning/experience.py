"""What earlier runs in the store took, and what a plan's missing stages ask for, as `estimate` wants both."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from cluster.storage import ArtifactStore
from orchestrator.planning.digest import digest_of
from orchestrator.planning.estimate import Measured, Work
from orchestrator.planning.feasible import num_training_images
from orchestrator.planning.manifest import manifest_of
from orchestrator.planning.plan import NetworkSource, Plan, Stage, StoreStage, TrainStage
from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.cost import blocks_of, network_macs
from strategies.shapes import WHOLE

_TRAINING_FACTOR = 3
"""Passes a trained network does for an image, in units of its forward pass: backward costs two."""
_FILES = ("stage.json", "result.json")


def measured(store: ArtifactStore, *, on_gpu: bool) -> list[Measured]:
    """Finished training stages of a store that ran on such devices; damaged and foreign ones are passed over."""
    found = []
    for name in store.names("stages/"):
        try:
            folder = store.fetch(name, _FILES)
            result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            stage = TrainStage.model_validate_json((folder / "stage.json").read_text(encoding="utf-8"))
            device = str(result["environment"]["device"])
            images = int(result["steps"]) * stage.training.batch_size
            hours = float(result["device_hours"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            continue  # a measurement, a stored teacher, or of a strategy that is not installed here
        if images > 0 and (device == "cpu") != on_gpu:
            found.append(Measured(key_of(stage), macs_of(stage), 3600 * hours / images))
    return found


def missing_work(plan: Plan, missing: Collection[str]) -> list[Work]:
    """The stages among these that train or store answers; measurements take minutes and are left out."""
    stages = [stage for digest, stage in plan.stages.items() if digest in missing]
    return [
        Work(stage.label, key_of(stage), images_of(stage), macs_of(stage, plan))
        for stage in stages
        if isinstance(stage, (TrainStage, StoreStage))
    ]


def key_of(stage: TrainStage | StoreStage) -> str:
    """Digest of what decides the work that one image takes."""
    if isinstance(stage, StoreStage):
        return digest_of({"stored": stage.model.model_dump(mode="json"), "batch": stage.training.batch_size})
    return digest_of(
        {
            "student": _network(stage.student),
            "teachers": [_network(teacher) for teacher in stage.teachers],
            "strategies": [strategy.model_dump(mode="json") for strategy in stage.strategies],
            "precision": stage.training.precision,
            "compile": stage.training.compile,
            "batch": stage.training.batch_size,
            "image_size": stage.data.image_size,
        }
    )


def images_of(stage: TrainStage | StoreStage) -> int:
    """Images trained on (or answered) in all epochs."""
    if isinstance(stage, StoreStage):
        return stage.epochs * stage.num_answers
    size = stage.training.batch_size
    return stage.epochs * (num_training_images(stage.data, manifest_of(stage.data).num_train) // size * size)


def macs_of(stage: TrainStage | StoreStage, plan: Plan | None = None) -> float | None:
    """MACs of one image: three forward passes of the student, one of each teacher; strategies are left out.

    `None` if a network is no plain Vision Transformer, or is only known by the stage that made it and that stage is
    not in the plan.
    """
    if isinstance(stage, StoreStage):
        return _forward(stage.model)
    student = _forward(_model(stage.student, plan))
    teachers = [_forward(_model(teacher, plan)) for teacher in stage.teachers if teacher.store is None]
    if student is None or any(macs is None for macs in teachers):
        return None
    return _TRAINING_FACTOR * student + sum(macs for macs in teachers if macs is not None)


def _network(source: NetworkSource) -> Any:
    return source.model_dump(mode="json", exclude_none=True)


def _model(source: NetworkSource, plan: Plan | None) -> ModelSpec | None:
    """A network's timm model; of a stage's network, what that stage began with."""
    while source.model is None and source.stage is not None and plan is not None:
        stage: Stage | None = plan.stages.get(source.stage)
        if not isinstance(stage, TrainStage):
            return None
        source = stage.student
    return source.model


def _forward(model: ModelSpec | None) -> float | None:
    if model is None:
        return None
    try:
        facts = facts_of(model)
    except ValueError:
        return None
    if facts.family != "vit":
        return None
    return float(network_macs(facts, blocks_of(facts, WHOLE)))
