"""What names a stage: everything that its numbers depend on, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.planning.digest import digest_of
from orchestrator.planning.plan import MeasureStage
from strategies.dynamic.token_merging import TokenMerging
from tests.planning.specs import DISTILL, TINY, axes, result

UNCHANGED: list[dict[str, Any]] = [
    {"resources": {"workers": 4, "max_retries": 0, "lanes": 2}},
    {"name": "renamed", "description": "for people"},
    {"storage": {"root": "/elsewhere"}},
    {"data": {"kind": "sample", "loader_workers": 3}},
    {"stages": [{"name": "renamed", "training": {"checkpoint_every_steps": 5}}], "teacher": None},
    {"student": {"model": "vit_tiny_patch16_224", "args": {**TINY, "num_classes": 10, "img_size": 28}}},
]


CHANGED: list[dict[str, Any]] = [
    {"seed": 1},
    {"data": {"kind": "sample", "limit_train": 100}},
    {"data": {"kind": "sample", "image_size": 32}},
    {"student": {"model": "vit_tiny_patch16_224", "args": {**TINY, "depth": 5}}},
    {"stages": [{"name": "student", "training": {"epochs": 2}}], "teacher": None},
    {"stages": [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}], "teacher": None},
    {"resources": {"gpus_per_worker": 1}},
]


@pytest.mark.parametrize("change", UNCHANGED, ids=lambda c: "-".join(c))
def test_what_does_not_change_the_numbers_does_not_change_the_digest(planned, change):
    assert result(planned(**change)).digest == result(planned()).digest


def test_published_weights_are_another_start(planned):
    student = {"model": "vit_tiny_patch16_224", "args": {"patch_size": 7}}
    published, random = (result(planned(student={**student, "pretrained": p})).digest for p in (True, False))
    assert published != random


def test_published_weights_fit_one_architecture(planned):
    student = {"model": "vit_tiny_patch16_224", "args": {"patch_size": 7, "depth": 4, "embed_dim": 48}}
    with pytest.raises(PlanError, match=r"`embed_dim` 48 instead of 192, `depth` 4 instead of 12.*`pretrained: false`"):
        planned(student={**student, "pretrained": True})
    assert planned(student=student).combinations


@pytest.mark.parametrize("change", CHANGED, ids=lambda c: "-".join(c))
def test_what_changes_the_numbers_changes_the_digest(planned, change):
    assert result(planned(**change)).digest != result(planned()).digest


def test_the_version_of_a_strategy_is_in_the_digest(planned, monkeypatch):
    stages = [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}]
    before = result(planned(stages=stages, teacher=None))
    monkeypatch.setattr(TokenMerging, "version", TokenMerging.version + 1)
    after = result(planned(stages=stages, teacher=None))
    assert before.digest != after.digest
    assert before.strategies == after.strategies


def test_measuring_anew_does_not_train_anew(planned):
    before, after = planned(), planned(measurement={"batch_sizes": [1]})
    assert before.combinations[0].result == after.combinations[0].result
    assert before.combinations[0].measured_by != after.combinations[0].measured_by


def test_open_measurement_conditions_are_filled_in(planned):
    plan = planned(resources={"cpus_per_worker": 3})
    measure = plan.stages[plan.combinations[0].measured_by]
    assert isinstance(measure, MeasureStage)
    assert (measure.measurement.device, measure.measurement.threads, measure.input_size) == ("cpu", 3, 28)


def test_digests_are_those_of_their_parts(planned):
    plan = planned(matrix=axes(distill=DISTILL))
    assert {d: digest_of(s.digest_parts) for d, s in plan.stages.items()} == {d: d for d in plan.stages}
