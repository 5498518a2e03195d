"""What it took to train a combination: time and devices over all stages it needs, and the part of its teachers.

A stage that several combinations share counts in full for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from orchestrator.planning.plan import Combination, MeasureStage, Plan, TrainStage
from orchestrator.reporting.stored import number
from specs.metrics import MetricRow, row

Result = Mapping[str, Any]
"""Content of a training stage's `result.json`."""

_Parts = Mapping[str, float] | None
"""Stage → its share of a sum; `None` if that of any stage is not known."""


def training_rows(plan: Plan, combination: Combination, results: Mapping[str, Result]) -> list[MetricRow]:
    """`train_seconds`, `train_device_hours`, `teacher_share`, and the speed of the last stage.

    Args:
        plan: the plan.
        combination: one of its combinations.
        results: stage that trains, or stores a teacher's answers → its `result.json`, as far as it is finished.
    """
    stages = [d for d in combination.stages if not isinstance(plan.stages[d], MeasureStage)]
    seconds = _of_all(stages, results, "seconds")
    hours = _of_all(stages, results, "device_hours")
    teaching = _of_all(stages, results, "teacher_seconds")
    devices = sorted({str(results[d].get("environment", {}).get("device")) for d in stages if d in results})
    conditions: dict[str, JsonValue] = {"devices": list(devices)}
    speed = number(results.get(combination.result, {}).get("images_per_s"))
    return [
        _sum("train_seconds", seconds, "running time", conditions),
        _sum("train_device_hours", hours, "device-hours", conditions),
        _teacher_share(plan, combination.result, seconds, hours, teaching),
        row("train_images_per_s", speed, reason=None if speed is not None else "the last stage trained on no images"),
    ]


def _sum(name: str, parts: _Parts, what: str, conditions: Mapping[str, JsonValue]) -> MetricRow:
    if parts is None:
        return row(name, None, reason=f"a training stage of this combination left no {what}")
    return row(name, sum(parts.values()), conditions=dict(conditions))


def _teacher_share(plan: Plan, result: str, seconds: _Parts, hours: _Parts, teaching: _Parts) -> MetricRow:
    """Device-hours of stages that only lead to teachers, and of teachers that answer in the others, over all."""
    if hours is None or seconds is None or teaching is None:
        return row("teacher_share", None, reason="a training stage of this combination left no teacher's time")
    total = sum(hours.values())
    if not total:
        return row("teacher_share", None, reason="training took no time")
    own = _line_of(plan, result)
    taught = sum(hours[d] * teaching[d] / seconds[d] for d in hours if d in own and seconds[d])
    return row("teacher_share", 100 * (sum(hours[d] for d in hours if d not in own) + taught) / total)


def _line_of(plan: Plan, digest: str | None) -> set[str]:
    """The stages that the network itself went through: the last one, the one it started from, and so on."""
    line: set[str] = set()
    while digest is not None:
        line.add(digest)
        stage = plan.stages[digest]
        assert isinstance(stage, TrainStage), "a network starts from a training stage"
        digest = stage.student.stage
    return line


def _of_all(stages: list[str], results: Mapping[str, Result], key: str) -> _Parts:
    """A number of each stage; `None` if any lacks it."""
    found: dict[str, float] = {}
    for digest in stages:
        value = number(results.get(digest, {}).get(key))
        if value is None:
            return None
        found[digest] = value
    return found
