"""Peak memory of training: against what gradients and optimiser state must weigh, and against what is added."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local import LocalStore
from orchestrator.errors import SpecError
from orchestrator.measurement.growth import MemoryUnreadable, reset_peak
from orchestrator.measurement.memory import Memory, Probe
from orchestrator.measurement.network import strategy_of
from orchestrator.measurement.training_memory import Training
from orchestrator.planning.plan import NetworkSource, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from specs.data import Sample
from specs.model import ModelSpec
from specs.training import AugmentationSpec, OptimizerSpec, TrainingSpec
from strategies.compose import build_model

pytestmark = pytest.mark.alone

MODEL = ModelSpec(
    model="vit_tiny_patch16_224",
    args={
        "img_size": 28,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "num_classes": 10,
    },
)
PARAMETERS = sum(p.numel() for p in build_model(MODEL).parameters())
TEACHER = "b" * 64


def can_read() -> bool:
    try:
        reset_peak()
    except MemoryUnreadable:
        return False
    return True


def stage(*options: dict, digest: str = "a" * 64, teacher: str | None = None, **training: object) -> TrainStage:
    return TrainStage(
        digest=digest,
        label="student",
        digest_parts={},
        parents=() if teacher is None else (teacher,),
        student=NetworkSource(model=MODEL),
        teacher=None if teacher is None else NetworkSource(stage=teacher),
        strategies=tuple(strategy_of(o).config for o in options),
        training=TrainingSpec(**{"batch_size": 64, **training}),
        data=Sample(kind="sample", limit_train=40, limit_val=100),
        num_classes=10,
        seed=0,
    )


@pytest.mark.skipif(not can_read(), reason="this platform does not tell the peak of a process")
def test_what_a_step_holds(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    teacher = stage(digest=TEACHER, epochs=0, batch_size=20)
    run_train_stage(teacher, WorkerContext(), StageIO(store, tmp_path / "teacher"))
    mixed = AugmentationSpec(mixup=0.8)
    stages = {
        "adamw": stage(),
        "sgd": stage(optimizer=OptimizerSpec(name="sgd", momentum=0.9)),
        "small": stage(micro_batch=16, augmentation=mixed),
        "average": stage(ema=0.99, micro_batch=16),
        "taught": stage({"name": "response"}, {"name": "feature"}, teacher=TEACHER, micro_batch=16),
    }
    trainings = {name: Training(s, store) for name, s in stages.items()}
    assert [trainings[n].micro_steps for n in ("adamw", "small")] == [1, 4]
    assert Training(stages["small"], store, workers=2).micro_steps == 2
    probe = Probe({name: t.job(threads=1) for name, t in trainings.items()})
    found: dict[str, Memory] = {name: probe.result(name) for name in stages}

    weights, counters = 4 * PARAMETERS, 4 * 200  # AdamW counts steps in a number for every tensor
    for name in ("adamw", "sgd", "small"):
        assert found[name].weights == found[name].gradients == weights
        assert found[name].peak == sum(found[name].parts.values())
    assert 2 * weights <= found["adamw"].optimizer <= 2 * weights + counters
    assert found["sgd"].optimizer == weights
    assert found["average"].weights == 2 * weights
    assert found["taught"].weights >= 2 * weights, "the teacher's, and the projections'"

    # Of every block: two normed inputs and two sums, queries, keys and values, the attention's output, and the
    # hidden layer before and after GELU are kept for the backward pass; the attention itself is not, being fused.
    tokens, D = 64 * 50, 96
    kept = 4 * tokens * 4 * D * (4 + 3 + 1 + 8)
    assert kept < found["adamw"].activations < 2 * kept
    assert found["small"].activations < found["adamw"].activations / 2


def test_why_there_is_none(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert Training(stage(epochs=0), store).why_not == "the stage trains for 0 epochs"
    with pytest.raises(FileNotFoundError, match=TEACHER):
        Training(stage(teacher=TEACHER), store).job(threads=1)
    with pytest.raises(SpecError, match="64"):
        Training(stage(), store, workers=3).job(threads=1)
