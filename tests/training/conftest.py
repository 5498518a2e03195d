"""Small stages on real digits, and a way to run them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.planning.plan import NetworkSource, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from specs.data import Sample
from specs.model import ModelSpec
from specs.training import TrainingSpec

DIGITS = Sample(kind="sample", limit_train=160, limit_val=50)
ARGS = {
    "img_size": 28,
    "patch_size": 7,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 3,
}

MakeStage = Callable[..., TrainStage]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def tiny() -> ModelSpec:
    """A ViT for 28 px digits: 16 patches, width 48, depth 4, 3 heads."""
    return ModelSpec(model="vit_tiny_patch16_224", args=dict(ARGS))


@pytest.fixture
def make_stage() -> MakeStage:
    """Build a training stage; keywords override its fields, `args` the model's arguments, others go to `training`."""

    def make(args: dict[str, Any] | None = None, **options: Any) -> TrainStage:
        own = {k: options.pop(k) for k in tuple(options) if k in TrainStage.model_fields}
        model = ModelSpec(model="vit_tiny_patch16_224", args={**ARGS, **(args or {})})
        training = TrainingSpec.model_validate({"epochs": 1, "batch_size": 16, **options})
        fields: dict[str, Any] = {
            "label": "student",
            "digest_parts": {"data": {"manifest": "0" * 64}},
            "parents": (),
            "student": NetworkSource(model=model),
            "teacher": None,
            "strategies": (),
            "training": training,
            "data": DIGITS,
            "num_classes": 10,
            "seed": 0,
            **own,
        }
        name = hashlib.sha256(repr(sorted(fields.items(), key=lambda f: f[0])).encode()).hexdigest()
        return TrainStage.model_validate({"digest": name, **fields})

    return make


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path, store: LocalStore) -> Run:
    """Run a stage in this process; keywords go to `StageIO`."""

    def run_stage(stage: TrainStage, context: WorkerContext | None = None, **io: Any) -> dict[str, Any]:
        io.setdefault("store", store)
        return run_train_stage(stage, context or WorkerContext(), StageIO(scratch=tmp_path / "scratch", **io))

    return run_stage
