"""What pruning leaves is planned for: the stage's other strategies, later stages, and how long a stage has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import PlanError
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan, TrainStage
from specs.load import load
from strategies.registry import resolver

HALF_DEPTH = {"name": "structured_pruning", "ratio": 0.5, "what": ["depth", "embed"]}


def exits(*blocks: int) -> dict[str, Any]:
    return {"name": "early_exit", "blocks": list(blocks)}


def plan(stages: list[dict[str, Any]], folder: Path) -> Plan:
    data = {
        "name": "tested",
        "data": {"kind": "sample"},
        "student": {"model": "vit_tiny_patch16_224", "args": {"patch_size": 4}},  # 12 blocks
        "stages": stages,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return make_plan(load(folder / "spec.yaml", resolver=resolver))


def after(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": "prune", "training": {"epochs": 2}, "strategies": [first]},
        {"name": "exit", "init": {"stage": "prune"}, "training": {"epochs": 1}, "strategies": [second]},
    ]


def test_a_later_stage_sees_the_blocks_that_are_left(tmp_path: Path) -> None:
    assert plan(after(HALF_DEPTH, exits(4)), tmp_path).combinations
    with pytest.raises(PlanError, match=r"early_exit\.blocks: there is no block 8; allowed: blocks from 0 to 4"):
        plan(after(HALF_DEPTH, exits(8)), tmp_path)


def test_the_same_stage_does_too(tmp_path: Path) -> None:
    one = {"name": "both", "training": {"epochs": 1}}
    assert plan([{**one, "strategies": [HALF_DEPTH, exits(4)]}], tmp_path).combinations
    with pytest.raises(PlanError, match="there is no block 8"):
        plan([{**one, "strategies": [HALF_DEPTH, exits(8)]}], tmp_path)


@pytest.mark.parametrize(
    ("epochs", "recover", "fits"), [(2, 1.0, True), (1, 1.0, False), (1, 0.5, True), (0, 0.5, False)]
)
def test_training_has_to_follow_the_last_cut(epochs: int, recover: float, fits: bool, tmp_path: Path) -> None:
    pruning = {"name": "structured_pruning", "ratio": 0.5, "steps": 2, "recover_epochs": recover}
    stages = [{"name": "prune", "training": {"epochs": epochs}, "strategies": [pruning]}]
    if fits:
        stage = next(s for s in plan(stages, tmp_path).stages.values() if isinstance(s, TrainStage))
        assert stage.strategies[0].name == "structured_pruning"
    else:
        with pytest.raises(PlanError, match="`structured_pruning` cuts the network for the last time after"):
            plan(stages, tmp_path)
