"""Rows that training itself has taken: accuracy at its end, and its speed.

They are read from the training stage's result and not taken again. The final evaluation ran the very weights of the
artefact over every validation image once; repeating it would give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from orchestrator.planning.plan import TrainStage
from specs.metrics import MetricRow, row


def rows_of(stage: TrainStage, result: Mapping[str, Any]) -> list[MetricRow]:
    """Accuracy and training speed.

    Args:
        stage: the training stage.
        result: its `result.json`.
    """
    metrics, environment = result["metrics"], result["environment"]
    evaluated: dict[str, JsonValue] = {
        "images": "all validation images",
        "input_size": stage.data.image_size,
        "precision": stage.training.precision,
    }
    trained: dict[str, JsonValue] = {
        **environment,
        "precision": stage.training.precision,
        "compile": stage.training.compile,
        "batch_size": stage.training.batch_size,
    }
    top5 = metrics.get("val_top5")
    few = stage.num_classes <= 5
    return [
        row("top1", metrics.get("val_top1"), conditions=evaluated, reason=_missing(metrics.get("val_top1"))),
        row(
            "top5",
            None if few else top5,
            conditions=evaluated,
            reason=f"with {stage.num_classes} classes every answer is among five" if few else _missing(top5),
        ),
        row(
            "train_images_per_s",
            result["images_per_s"],
            conditions=trained,
            reason="the stage trains for 0 epochs" if result["images_per_s"] is None else None,
        ),
    ]


def _missing(value: float | None) -> str | None:
    return "the final evaluation did not report it" if value is None else None
