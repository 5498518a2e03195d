"""What tells validation sets apart in the conditions of a measurement."""

from __future__ import annotations

from pathlib import Path

from orchestrator.measurement.trained import evaluation_conditions
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import TrainStage
from orchestrator.reporting.conditions import Conditions, relevant
from specs.load import load
from strategies import registry

SPEC = """
name: images
data: {kind: sample}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 48, depth: 2, num_heads: 3}}
stages: [{name: train, training: {epochs: 1}}]
matrix: {axes: {images: {path: data.%s, values: [500, 1000]}}}
"""


def conditions_of_top1(tmp_path: Path, limit: str) -> list[Conditions]:
    """What top-1 depends on, in two combinations that differ in a limit alone."""
    (tmp_path / "spec.yaml").write_text(SPEC % limit, encoding="utf-8")
    plan = make_plan(load(tmp_path / "spec.yaml", resolver=registry.resolver))
    trained = [stage for stage in plan.walk() if isinstance(stage, TrainStage)]
    assert len(trained) == 2
    return [relevant("top1", evaluation_conditions(stage)) for stage in trained]


def test_accuracies_on_other_validation_images_are_kept_apart(tmp_path: Path) -> None:
    few, more = conditions_of_top1(tmp_path, "limit_val")
    assert few != more
    assert few["images"] == str(more["images"]).replace("1,000", "500")


def test_accuracies_after_other_training_images_are_compared(tmp_path: Path) -> None:
    few, more = conditions_of_top1(tmp_path, "limit_train")
    assert few == more
