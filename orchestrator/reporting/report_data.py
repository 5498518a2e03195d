"""What the report's figures draw, as JSON: nothing is computed in the browser.

Texts that plotly draws are escaped here, because it reads a few tags of HTML in them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan, TrainStage
from orchestrator.reporting.comparison import Cell, Column, Comparison, CurvePoint, PublishedPoint, Row, StageCost
from orchestrator.reporting.front import Fronts
from orchestrator.reporting.published import MEANING, published_front
from orchestrator.reporting.stored import HISTORY, OUTCOMES, read_history, read_outcomes, stage_folder
from orchestrator.reporting.table import number, spread, title
from orchestrator.training.outcomes import Outcomes
from specs.metrics import METRICS

HEAT_MAP_CLASSES = 100
"""With more classes a confusion matrix is no picture; calibration and the worst classes are shown all the same."""

_WORST = 30
"""Classes of the per-class figure."""

_QUALITIES = ("top1", "top5")


def data(comparison: Comparison, plan: Plan, store: ArtifactStore) -> dict[str, Any]:
    """Everything that the scripts read.

    Raises:
        StoreError: if the history or the evaluation of a stage is damaged.
    """
    goals = [c.key for c in comparison.columns if c.direction != "none"]
    front = Fronts(comparison)
    return {
        "columns": [
            {
                "key": c.key,
                "metric": c.metric,
                "title": escape(title(c)),
                "direction": c.direction,
                "baseline": baseline_value(comparison, c),
            }
            for c in comparison.columns
        ],
        "axes": list(dict.fromkeys(axis for r in comparison.rows for axis in r.labels)),
        "quality": comparison.quality,
        "cost": comparison.cost,
        "fronts": {f"{y}|{x}": sorted(front(y, x)) for y, x in itertools.combinations(goals, 2)},
        "rows": [_row(r, comparison) for r in comparison.rows],
        "operating": [_operating(comparison, c.combination, c.knob, c.points) for c in comparison.curves],
        "effects": [_effect(comparison, i) for i in range(len(comparison.effects))],
        "stages": _stages(comparison),
        "training": list(_training(plan, store)),
        "evaluations": list(_evaluations(plan, store)),
        "published": [_published(p) for p in comparison.published],
        "published_fronts": _published_fronts(comparison),
        "meaning": MEANING,
    }


def baseline_value(comparison: Comparison, column: Column) -> float | None:
    """The baseline's own value, from values and their ratios to it; `None` without ratios, or where conditions differ.

    Timings of the baseline were taken with every network anew; theirs is the median.
    """
    if column.ratio is None or len(column.groups) > 1:
        return None
    pairs = [(r.cells[column.key].value, r.cells[column.ratio].value) for r in comparison.rows]
    own = [value / ratio for value, ratio in pairs if value is not None and ratio]
    return statistics.median(own) if own else None


def _row(r: Row, comparison: Comparison) -> dict[str, Any]:
    return {
        "name": r.name,
        "label": escape(r.name),
        "labels": r.labels,
        "values": _values(r.cells),
        "bars": _bars(r.cells),
        "groups": {key: cell.group for key, cell in r.cells.items() if cell.group is not None},
        "unreliable": {key: escape(cell.unreliable) for key, cell in r.cells.items() if cell.unreliable},
        "probability": r.front_probability,
        "hover": _hover(r, comparison),
    }


def _values(cells: Mapping[str, Cell]) -> dict[str, float]:
    return {key: cell.value for key, cell in cells.items() if cell.value is not None}


def _bars(cells: Mapping[str, Cell]) -> dict[str, tuple[float, float]]:
    """Column key → length of the error bar below and above: ± one standard deviation over the seeds, or else the
    interval of the single measurement."""
    bars = {}
    for key, cell in cells.items():
        if cell.std is not None:
            bars[key] = (cell.std, cell.std)
        elif cell.interval and cell.value is not None:
            bars[key] = (max(0.0, cell.value - cell.interval[0]), max(0.0, cell.interval[1] - cell.value))
    return bars


def _hover(r: Row, comparison: Comparison) -> str:
    lines = [f"<b>{escape(r.name)}</b>", f"seeds: {', '.join(map(str, r.measured))}"]
    if r.front_probability is not None:
        axes = f"{comparison.quality} against {comparison.cost}"
        lines.append(f"on the front ({escape(axes)}) with probability {r.front_probability:.2f}")
    for c in comparison.columns:
        cell = r.cells.get(c.key)
        if cell is None or cell.value is None:
            continue
        bar = f" ± {spread(cell.std, c)}" if cell.std else ""
        doubt = f" – unreliable: {escape(cell.unreliable)}" if cell.unreliable else ""
        lines.append(f"{escape(title(c))}: {number(cell.value, c.unit, c.metric)}{bar}{doubt}")
    return "<br>".join(lines)


def _operating(comparison: Comparison, combination: str, knob: str, points: Iterable[CurvePoint]) -> dict[str, Any]:
    return {
        "combination": combination,
        "label": escape(combination),
        "knob": escape(knob),
        "points": [
            {
                "setting": p.setting,
                "trained": p.trained,
                "values": _values(p.cells),
                "bars": _bars(p.cells),
                "hover": _operating_hover(comparison, combination, knob, p),
            }
            for p in points
        ],
    }


def _operating_hover(comparison: Comparison, combination: str, knob: str, p: CurvePoint) -> str:
    own = " (the setting of the spec)" if p.trained else ""
    lines = [f"<b>{escape(combination)}</b>", f"{escape(knob)} = {p.setting:g}{own}"]
    for c in comparison.columns:
        cell = p.cells.get(c.key)
        if cell is not None and cell.value is not None:
            lines.append(f"{escape(title(c))}: {number(cell.value, c.unit, c.metric)}")
    return "<br>".join(lines)


def _effect(comparison: Comparison, i: int) -> dict[str, Any]:
    e = comparison.effects[i]
    chosen = " and ".join(f"{axis}={label}" for axis, label in e.labels.items())
    against = ", ".join(e.against.values())
    error = f" ± {e.std_error:.2g}" if e.std_error is not None else " (no spread over seeds)"
    kind = "main effect" if len(e.labels) == 1 else "interaction"
    return {
        "column": e.column,
        "interaction": len(e.labels) > 1,
        "label": escape(f"{chosen}, not {against}" if len(e.labels) == 1 else " × ".join(chosen.split(" and "))),
        "value": e.value,
        "error": e.std_error,
        "hover": escape(f"{kind}: {chosen} against {against}")
        + f"<br>{e.value:+.4g}{error} {e.unit} of {escape(e.column)}<br>pairs: {e.num_pairs}",
    }


def _stages(comparison: Comparison) -> list[dict[str, Any]]:
    """Cost of the finished stages; those that differ in their seed alone are added up."""
    alike: dict[tuple[str, str], list[StageCost]] = {}
    for s in comparison.stages:
        if s.seconds is not None:
            alike.setdefault((s.label, s.kind), []).append(s)
    return [
        {
            "label": escape(label) + (f" × {len(runs)} seeds" if len(runs) > 1 else ""),
            "kind": kind,
            "seconds": sum(s.seconds or 0 for s in runs),
            "teacher_seconds": sum(s.teacher_seconds or 0 for s in runs),
            "device_hours": sum(s.device_hours or 0 for s in runs),
        }
        for (label, kind), runs in alike.items()
    ]


def _training(plan: Plan, store: ArtifactStore) -> Iterable[dict[str, Any]]:
    several = len({c.seed for c in plan.combinations}) > 1
    for stage in plan.walk():
        folder = stage_folder(store, stage.digest, HISTORY) if isinstance(stage, TrainStage) else None
        if folder is None or not isinstance(stage, TrainStage):
            continue
        values: dict[str, list[tuple[int, float]]] = {}
        for epoch in read_history(folder):
            for name, value in epoch.values.items():
                values.setdefault(name, []).append((epoch.epoch, value))
        if values:
            label = f"{stage.label}, seed {stage.seed}" if several else stage.label
            yield {"label": escape(label), "values": values}


def _evaluations(plan: Plan, store: ArtifactStore) -> Iterable[dict[str, Any]]:
    """Outcomes of each combination's last stage; counts of all seeds are added up."""
    found: dict[str, list[tuple[int, Outcomes]]] = {}
    for combination in plan.combinations:
        folder = stage_folder(store, combination.result, OUTCOMES)
        outcomes = read_outcomes(folder) if folder is not None else None
        if outcomes is not None and outcomes.num_images:
            found.setdefault(combination.name, []).append((combination.seed, outcomes))
    for name, runs in found.items():
        alike = [(seed, o) for seed, o in runs if o.classes == runs[0][1].classes]
        first = alike[0][1]
        confusion, bins = np.sum([o.confusion for _, o in alike], axis=0), np.sum([o.bins for _, o in alike], axis=0)
        added = Outcomes(first.classes, confusion, bins)
        yield {"name": name, "label": escape(name), "seeds": [seed for seed, _ in alike], **_pictured(added)}


def _pictured(outcomes: Outcomes) -> dict[str, Any]:
    shares = [(share, name) for name, share in outcomes.top1_by_class().items() if share is not None]
    worst = sorted(shares)[:_WORST]
    bins = [
        {"confidence": 100 * confidence / images, "hits": 100 * hits / images, "images": int(images)}
        for images, hits, confidence in outcomes.bins.tolist()
        if images
    ]
    pictured = len(outcomes.classes) <= HEAT_MAP_CLASSES
    rows, columns = np.nonzero(outcomes.confusion) if pictured else (np.array([], int), np.array([], int))
    entries = np.stack([rows, columns, outcomes.confusion[rows, columns]], axis=1).tolist()
    return {
        "classes": [escape(name) for name in outcomes.classes] if pictured else [],
        "num_classes": len(outcomes.classes),
        "num_images": outcomes.num_images,
        "top1": outcomes.top1,
        "ece": outcomes.ece,
        "confusion": entries,
        "bins": bins,
        "worst": [{"class": escape(name), "top1": share} for share, name in worst],
    }


def _published(p: PublishedPoint) -> dict[str, Any]:
    told = ", ".join(f"{key} {value}" for key, value in p.conditions.items())
    lines = [f"<b>{escape(p.name)}</b>", MEANING, escape(f"{p.source}: {p.group}"), escape(told)]
    for metric, value in p.values.items():
        unit = METRICS[metric].unit if metric in METRICS else ""
        # Counts of parameters and MACs carry their prefix, and the unit would say it twice.
        lines.append(escape(f"{metric}: {number(value, unit, metric)}"))
    return {"name": p.name, "group": escape(p.group), "values": p.values, "hover": "<br>".join(lines)}


def _published_fronts(comparison: Comparison) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """`metric|metric` (quality first) → group → points (quality, cost) of its own front."""
    metrics = {metric for p in comparison.published for metric in p.values}
    fronts = {}
    for y, x in itertools.product(_QUALITIES, sorted(metrics - set(_QUALITIES))):
        if y in metrics:
            groups = published_front(comparison.published, y, x)
            fronts[f"{y}|{x}"] = {
                escape(group): [(p.values[y], p.values[x]) for p in points] for group, points in groups.items()
            }
    return fronts
