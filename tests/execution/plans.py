"""Small plans whose stages are the programmes of `fake_stages`; importable by name, like everything workers need."""

from __future__ import annotations

import hashlib

from orchestrator.execution.lane import Runners
from orchestrator.planning.plan import Combination, MeasureStage, NetworkSource, Plan, TrainStage
from specs.data import Sample
from specs.experiment import Experiment, StageSpec
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec
from specs.resources import ResourcesSpec
from specs.training import TrainingSpec

RUNNERS = Runners("tests.execution.fake_stages:train", "tests.execution.fake_stages:measure")
DATA = Sample(kind="sample")
MODEL = ModelSpec(model="vit_tiny_patch16_224")


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def train(label: str, *parents: str, epochs: int = 1) -> TrainStage:
    return TrainStage(
        digest=digest(label),
        label=label,
        digest_parts={},
        parents=tuple(digest(parent) for parent in parents),
        student=NetworkSource(model=MODEL),
        teacher=None,
        strategies=(),
        training=TrainingSpec(epochs=epochs),
        data=DATA,
        num_classes=10,
        seed=0,
    )


def measure(parent: str) -> MeasureStage:
    return MeasureStage(
        digest=digest(f"measure {parent}"),
        label=f"measure {parent}",
        digest_parts={},
        parents=(digest(parent),),
        measurement=MeasurementSpec(),
        data=DATA,
        num_classes=10,
        input_size=28,
    )


def plan(*stages: TrainStage | MeasureStage) -> Plan:
    """Every stage is wanted for itself."""
    stages_by_digest = {stage.digest: stage for stage in stages}
    wanted = tuple(Combination(name=d, labels={}, seed=0, stages=(d, d)) for d in stages_by_digest)
    return Plan(experiment="test", stages=stages_by_digest, combinations=wanted)


def experiment(**resources: object) -> Experiment:
    return Experiment(
        name="test",
        data=DATA,
        student=MODEL,
        stages=[StageSpec(name="train")],
        resources=ResourcesSpec(**resources),  # type: ignore[arg-type]
    )
