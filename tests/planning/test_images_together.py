"""Where the images of a micro-batch are compared, how many there are is part of a stage's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import PlanError
from orchestrator.planning.make import make_plan
from specs.load import load
from strategies import registry

SPEC = """
name: images
data: {kind: sample}
student: STUDENT
teacher: {model: {model: resnet10t}}
stages: [{name: train, training: {epochs: 1, batch_size: 32TRAINING}, strategies: [{STRATEGY}]}]
resources: {workers: WORKERS}
"""
VIT = "{model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 48, depth: 3, num_heads: 3}}"


def digest(tmp_path: Path, workers: int | str, strategy: str, training: str = "", student: str = VIT) -> str:
    text = SPEC.replace("STUDENT", student).replace("TRAINING", training)
    text = text.replace("STRATEGY", strategy).replace("WORKERS", str(workers))
    (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
    plan = make_plan(load(tmp_path / "spec.yaml", resolver=registry.resolver))
    return plan.combinations[0].result


@pytest.mark.parametrize(
    ("strategy", "compares"),
    [
        ("name: response", False),
        ("name: response, kind: relational", True),
        ("name: response, kind: relational, intra_weight: 0", False),
        ("name: manifold", True),
        ("name: manifold, weights: [4, 0, 0]", False),
        ("name: structured_pruning, ratio: 0.5, importance: taylor", False),
        ("name: structured_pruning, ratio: 0.5, importance: hessian", True),
    ],
)
def test_other_workers_are_another_stage_only_where_images_are_compared(tmp_path, strategy, compares):
    assert (digest(tmp_path, 1, strategy) != digest(tmp_path, 2, strategy)) == compares
    fixed = ", micro_batch: 8"
    assert digest(tmp_path, 1, strategy, fixed) == digest(tmp_path, 2, strategy, fixed)


def test_batch_norms_compare_images(tmp_path):
    student, strategy = "{model: resnet10t}", "name: response"
    assert digest(tmp_path, 1, strategy, student=student) != digest(tmp_path, 2, strategy, student=student)


def test_a_varying_number_of_workers_is_refused_where_images_are_compared(tmp_path):
    elastic = "{min: 1, max: 2}"
    with pytest.raises(
        PlanError, match=r"(?s)how many images a worker has at once.*Way out: set `training.micro_batch`"
    ):
        digest(tmp_path, elastic, "name: manifold")
    assert digest(tmp_path, elastic, "name: response") == digest(tmp_path, 1, "name: response")
    fixed = ", micro_batch: 8"
    assert digest(tmp_path, elastic, "name: manifold", fixed) == digest(tmp_path, 1, "name: manifold", fixed)
