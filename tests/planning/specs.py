"""Specs of a teacher and a student that plan in milliseconds, and how to find their stages."""

from __future__ import annotations

from typing import Any

from orchestrator.planning.plan import Plan, TrainStage

TINY = {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}


MERGING = {"strategies": {"none": [], "r2": [{"name": "token_merging", "r": 2}]}}


DISTILL = {"strategies": {"none": [], "soft": [{"name": "response"}]}}


def spec(**changes: Any) -> dict[str, Any]:
    """A spec with a teacher stage and a student stage."""
    return {
        "name": "tested",
        "data": {"kind": "sample"},
        "student": {"model": "vit_tiny_patch16_224", "args": TINY},
        "teacher": {"stage": "teacher"},
        "stages": [
            {
                "name": "teacher",
                "model": {"model": "vit_tiny_patch16_224", "args": {**TINY, "embed_dim": 96}},
                "seed": 0,
            },
            {"name": "student"},
        ],
        **changes,
    }


def axes(**named: Any) -> dict[str, Any]:
    return {"axes": named}


def result(plan: Plan, position: int = 0) -> TrainStage:
    stage = plan.stages[plan.combinations[position].result]
    assert isinstance(stage, TrainStage)
    return stage


def by_label(plan: Plan, label: str) -> TrainStage:
    (stage,) = [s for s in plan.walk() if s.label == label]
    assert isinstance(stage, TrainStage)
    return stage
