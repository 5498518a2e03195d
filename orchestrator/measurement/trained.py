"""Rows that training itself has taken: accuracy at its end, and its speed.

They are read from the training stage's artefact and not taken again. The final evaluation ran the very weights of the
artefact over every validation image once; repeating it would give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from orchestrator.measurement.samples import thinned
from orchestrator.planning.plan import TrainStage
from orchestrator.planning.validation_set import validation_set
from orchestrator.training.outcomes import Outcomes
from specs.metrics import MetricRow, row


def rows_of(stage: TrainStage, result: Mapping[str, Any], outcomes: Outcomes) -> list[MetricRow]:
    """Accuracy and training speed.

    Args:
        stage: the training stage.
        result: its `result.json`.
        outcomes: its `evaluation.json`.
    """
    trained: dict[str, JsonValue] = {
        **result["environment"],
        "precision": stage.training.precision,
        "compile": stage.training.compile,
        "batch_size": stage.training.batch_size,
    }
    speed = result["images_per_s"]
    no_speed = "the stage trains for 0 epochs" if speed is None else None
    return [
        *_accuracies(stage, result["metrics"], outcomes),
        row("train_images_per_s", speed, conditions=trained, reason=no_speed),
    ]


def _accuracies(stage: TrainStage, metrics: Mapping[str, float], outcomes: Outcomes) -> list[MetricRow]:
    evaluated = evaluation_conditions(stage)
    few = stage.num_classes <= 5
    no_top5 = f"with {stage.num_classes} classes every answer is among five" if few else None
    shares = outcomes.top1_by_class().values()
    seen = [share for share in shares if share is not None]
    # A minimum over fewer classes is another number, so that they are among the conditions.
    classes = evaluated | {"classes": f"{len(seen)} of {len(shares)}"}
    return [
        row("top1", outcomes.top1, conditions=evaluated),
        row("top5", None if few else metrics["val_top5"], conditions=evaluated, reason=no_top5),
        row("ece", outcomes.ece, conditions=evaluated),
        row("worst_class_top1", min(seen), conditions=classes, samples=thinned(sorted(seen))),
    ]


def evaluation_conditions(stage: TrainStage) -> dict[str, JsonValue]:
    """What accuracies are taken under."""
    return {
        "images": f"all validation images of {validation_set(stage)}",
        "input_size": stage.data.image_size,
        "precision": stage.training.precision,
    }
