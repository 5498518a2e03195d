"""What a reader has to know before ranking, and the command that mends it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import JsonValue

from orchestrator.planning.plan import MeasureStage, Plan, TrainStage
from orchestrator.reporting import conditions
from orchestrator.reporting.comparison import Comparison
from orchestrator.reporting.found import named, notes_on_targets

_FIELDS = ("device", "precision", "compile", "threads", "images")
"""Conditions that `slimvit measure --conditions` sets by the same name."""
_ATTEMPTS = re.compile(r", in the last of \d+ attempts$")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def notes(comparison: Comparison, plan: Plan, trained: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Differing conditions, what training found by a target, unreliable values, what a search
    stopped, and missing seeds, in this order.

    Args:
        trained: train stage → its `result.json`.
    """
    again = _Again(plan)
    yield from _different_conditions(comparison, again)
    yield from _other_precision(comparison, plan)
    yield from notes_on_targets(comparison, plan, trained)
    yield from _unreliable(comparison, again)
    short = [r for r in comparison.rows if r.status == "partial"]
    stopped = [r for r in comparison.rows if r.status == "stopped"]
    if stopped:
        yield (
            f"{len(stopped)} of {len(comparison.rows)} combinations were stopped early by the search; each says on "
            "what evidence."
        )
    if short:
        yield f"{len(short)} of {len(comparison.rows)} combinations rest on fewer seeds than planned."


class _Again:
    """The command that measures finished networks again."""

    def __init__(self, plan: Plan) -> None:
        stages = [stage for stage in plan.walk() if isinstance(stage, MeasureStage)]
        self._name = plan.experiment
        self._repeat = 1 + max((stage.measurement.repeat for stage in stages), default=0)

    def alike(self, differences: Mapping[str, Mapping[str, JsonValue]], group: str) -> str:
        """Everything under the conditions of one group, as far as conditions can be set."""
        wanted = {key: values[group] for key, values in differences.items() if key in _FIELDS}
        settings = {key: _setting(key, value) for key, value in wanted.items() if value is not None}
        # Two machines of one kind, versions, kernels: the place makes these, not a setting.
        named_alike = "device" in differences and len({_kind(v) for v in differences["device"].values()}) == 1
        if named_alike or len(settings) < len(differences):
            settings = {k: v for k, v in settings.items() if k != "device" or not named_alike}
            settings["repeat"] = str(self._repeat)
        return self._command(settings)

    def once_more(self) -> str:
        """Everything again under the same conditions."""
        return self._command({"repeat": str(self._repeat)})

    def _command(self, settings: Mapping[str, str]) -> str:
        said = ",".join(f"{key}={value}" for key, value in settings.items())
        return f"slimvit measure {self._name} --conditions {said}"


def _different_conditions(comparison: Comparison, again: _Again) -> Iterable[str]:
    apart: dict[str, list[str]] = defaultdict(list)
    ways: dict[str, str] = {}
    for column in comparison.columns:
        if not column.differences:
            continue
        what = "; ".join(
            f"{key}: " + ", ".join(f"[{letter}] {_say(value)}" for letter, value in values.items())
            for key, values in column.differences.items()
        )
        if conditions.taken_while_training(column.metric):
            way = "Training took these: train all combinations on the same kind of device to compare them."
        else:
            command = again.alike(column.differences, _largest(comparison, column.key))
            way = f"Measure all combinations under the same conditions, on one machine, to compare them: `{command}`."
        ways[what] = ways.get(what, way)
        apart[what].append(column.key)
    for what, keys in apart.items():
        yield (
            f"{', '.join(keys)}: taken under different conditions and therefore not ranked together ({what}). "
            f"{ways[what]}"
        )


def _other_precision(comparison: Comparison, plan: Plan) -> Iterable[str]:
    """Training takes accuracies in its own number format, the bench the rest in the one that was asked for."""
    apart: dict[tuple[str, str], int] = defaultdict(int)
    shown = {row.name for row in comparison.rows if row.measured}
    for combination in (c for c in plan.combinations if c.name in shown):
        trained, measured = plan.stages[combination.result], plan.stages[combination.measured_by]
        if isinstance(trained, TrainStage) and isinstance(measured, MeasureStage):
            apart[trained.training.precision, measured.measurement.precision] += 1
    for (training, bench), count in apart.items():
        if training != bench:
            yield (
                f"Accuracies of {count} of {len(plan.combinations)} runs were taken in the precision of training "
                f"({training}), time and memory in {bench}: a network may answer slightly differently. To see both "
                f"in one, train with `training.precision: {bench}`, or measure with "
                f"`--conditions precision={training}`."
            )


def _unreliable(comparison: Comparison, again: _Again) -> Iterable[str]:
    """One note, however many values; each value's own reason is in the report and in JSON."""
    doubts = {
        (r.name, key): reason for r in comparison.rows for key, cell in r.cells.items() if (reason := cell.unreliable)
    }
    if not doubts:
        return
    names, keys = ({where[i]: None for where in doubts} for i in range(2))
    alike: dict[str, list[str]] = defaultdict(list)
    for part in (part for reason in doubts.values() for part in _ATTEMPTS.sub("", reason).split("; ")):
        alike[_NUMBER.sub("#", part)].append(part)
    reasons = [parts[0] + (f" (and {len(parts) - 1} like it)" if len(parts) > 1 else "") for parts in alike.values()]
    yield (
        f"Unreliable (marked ?), and so neither best nor on the front: {named(keys)} of {named(names)}. "
        f"Why: {'; '.join(reasons)}. Measure again while the device is quiet: `{again.once_more()}`."
    )


def _largest(comparison: Comparison, key: str) -> str:
    """Letter of the group that most combinations of a column are in."""
    return conditions.most_common(cell.group for r in comparison.rows if (cell := r.cells[key]).group)


def _setting(key: str, value: JsonValue) -> str:
    text = _kind(value) if key == "device" else str(value)
    return text.lower() if isinstance(value, bool) else text


def _kind(device: JsonValue) -> str:
    """`cuda` of `cuda: NVIDIA H100`."""
    return str(device).partition(":")[0]


def _say(value: JsonValue) -> str:
    return "not stated" if value is None else str(value)
