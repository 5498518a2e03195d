"""Cost of training, with numbers that can be added up by hand."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.planning.plan import Combination, MeasureStage, NetworkSource, Plan, TrainStage
from orchestrator.reporting.training_cost import training_rows
from specs.data import Sample
from specs.measurement import MeasurementSpec
from specs.training import TrainingSpec


def stage(name: str, init: str | None = None, teacher: str | None = None) -> TrainStage:
    return TrainStage(
        digest=name,
        label=name,
        digest_parts={},
        parents=tuple(p for p in (init, teacher) if p),
        student=NetworkSource(stage=init),
        teacher=None if teacher is None else NetworkSource(stage=teacher),
        strategies=(),
        training=TrainingSpec(),
        data=Sample(kind="sample"),
        num_classes=10,
        seed=0,
    )


def combination(*stages: TrainStage) -> tuple[Plan, Combination]:
    """A plan of one combination, whose last training stage is the last of these."""
    measured = MeasureStage(
        digest="m",
        label="m",
        digest_parts={},
        parents=(stages[-1].digest,),
        measurement=MeasurementSpec(),
        data=Sample(kind="sample"),
        num_classes=10,
        input_size=28,
    )
    found = Combination(name="default", labels={}, seed=0, stages=(*(s.digest for s in stages), "m"))
    return Plan(experiment="e", stages={s.digest: s for s in (*stages, measured)}, combinations=(found,)), found


def result(hours: float, teacher: float = 0.0, workers: int = 1, device: str = "cpu") -> dict[str, Any]:
    return {
        "seconds": 3600 * hours / workers,
        "device_hours": hours,
        "teacher_seconds": 3600 * teacher / workers,
        "images_per_s": 100.0,
        "environment": {"device": device},
    }


def rows(stages: list[TrainStage], results: dict[str, Any]) -> dict[str, Any]:
    return {r.name: r for r in training_rows(*combination(*stages), results)}


def test_the_teachers_training_and_its_answers() -> None:
    """assistant ← teacher; student ← assistant; the student goes on from a stage of its own, on two workers."""
    stages = [
        stage("teacher"),
        stage("assistant", None, "teacher"),
        stage("first"),
        stage("last", "first", "assistant"),
    ]
    results = {
        "teacher": result(5),
        "assistant": result(3, teacher=1),
        "first": result(2),
        "last": result(10, teacher=4, workers=2),
    }
    found = rows(stages, results)
    assert found["train_device_hours"].value == pytest.approx(20)
    assert found["train_seconds"].value == pytest.approx(3600 * (5 + 3 + 2 + 5))
    # 5 h and 3 h train teachers; of the student's own 12 h, the assistant answers in 4 h.
    assert found["teacher_share"].value == pytest.approx(100 * (5 + 3 + 4) / 20)
    assert found["train_device_hours"].conditions == {"devices": ["cpu"]}


def test_without_a_teacher_its_share_is_nothing() -> None:
    found = rows([stage("first"), stage("last", "first")], {"first": result(1), "last": result(2)})
    assert found["teacher_share"].value == 0
    assert found["train_device_hours"].value == 3


def test_a_network_that_was_pretrained_and_then_teaches_itself_counts_as_the_students() -> None:
    stages = [stage("first"), stage("last", "first", "first")]
    found = rows(stages, {"first": result(6), "last": result(4, teacher=1)})
    assert found["teacher_share"].value == pytest.approx(10)


def test_hours_of_different_devices_are_told_apart() -> None:
    found = rows([stage("first"), stage("last", "first")], {"first": result(1, device="H100"), "last": result(2)})
    assert found["train_device_hours"].conditions == {"devices": ["H100", "cpu"]}


def test_what_an_earlier_version_did_not_note_is_missing_with_the_reason() -> None:
    found = rows([stage("last")], {"last": {"seconds": 7.0, "images_per_s": None}})
    assert found["train_seconds"].value == 7
    assert (found["train_device_hours"].value, found["teacher_share"].value) == (None, None)
    assert "left no device-hours" in found["train_device_hours"].reason
    assert "left no teacher's time" in found["teacher_share"].reason
    assert "trained on no images" in found["train_images_per_s"].reason
    unfinished = rows([stage("first"), stage("last", "first")], {"last": result(2)})
    assert unfinished["train_seconds"].value is None
