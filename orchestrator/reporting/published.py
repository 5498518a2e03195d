"""Others' numbers beside one's own: imported once into the artefact store, shown apart, never ranked with ours.

An accuracy table names networks with the tag of their weights (``vit_tiny_patch16_224.augreg_in21k_ft_in1k``), a
benchmark without. They are joined by architecture and image size; every benchmark makes a group of its own, because
only numbers of one file were taken alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError, UsageError
from orchestrator.planning.plan import Plan
from orchestrator.reporting.comparison import Comparison, Frozen, PublishedFile, PublishedPoint
from orchestrator.reporting.pareto import on_front
from orchestrator.reporting.timm_results import Line, Table, read_table
from orchestrator.storage import commit_texts
from specs.metrics import METRICS
from specs.problems import nearest
from specs.words import counted

_FILE = "table.json"
_IMAGENET_CLASSES = 1000

TIMED = frozenset({"throughput", "latency_ms"})
"""Metrics that depend on the machine; the others are the same in every group."""

MEANING = "published by others under others' conditions"
"""How every table, figure and report names these points."""


class Published(Frozen):
    """An imported table, as it lies in the store."""

    format_version: int = 1
    name: str
    files: tuple[PublishedFile, ...]
    points: tuple[PublishedPoint, ...]


def import_results(files: Sequence[Path], name: str, store: ArtifactStore) -> str:
    """Read timm's tables, join them, and keep them as `published/<name>`.

    Args:
        files: at most one accuracy table, any number of inference benchmarks.
        name: under which `compare --published` finds them.
        store: the artefact store.

    Returns:
        What was imported, for people.

    Raises:
        UsageError: if a file is none of these tables or has wrong values, or the name is taken by other numbers.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name {name}: letters, digits, `.`, `_` and `-`, and a letter or digit first")
    if not files:
        raise UsageError("no file is named; name timm's `results-*.csv` and, for speeds, `benchmark-infer-*.csv`")
    tables = [read_table(path) for path in files]
    accuracy = [table for table in tables if table.kind == "accuracy"]
    if len(accuracy) > 1:
        names = ", ".join(f"`{table.file.file}`" for table in accuracy)
        raise UsageError(f"{names} are of different images; import each under a name of its own")
    made = Published(
        name=name, files=tuple(table.file for table in tables), points=tuple(_points(name, accuracy, tables))
    )
    try:
        commit_texts(store, f"published/{name}", {_FILE: made.model_dump_json()})
    except FileExistsError as error:
        raise UsageError(
            f"the store {store.location} has other numbers under the name `{name}`. Choose another with `--name`, "
            f"or delete `{store.place(f'published/{name}')}`."
        ) from error
    except OSError as error:
        raise StoreError(f"the store {store.location} cannot be written: {error.strerror or error}") from error
    return _summary(made, tables)


def load_published(name: str, store: ArtifactStore) -> Published:
    """An imported table.

    Raises:
        UsageError: if there is none of that name.
        StoreError: if it is damaged.
    """
    known = [found.split("/", 1)[1] for found in store.names("published")]
    if name not in known:
        near = nearest(name, known)
        raise UsageError(
            f"--published {name}: the store {store.location} has no imported numbers of that name"
            + (f"; did you mean `{near}`? " if near else ". ")
            + (f"It has: {', '.join(known)}." if known else "Import some with `slimvit import-results`.")
        )
    try:
        folder = store.fetch(f"published/{name}")
        return Published.model_validate_json((folder / _FILE).read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        raise StoreError(
            f"the imported numbers `{name}` in {store.location} cannot be read: {error}. Delete "
            f"`{store.place(f'published/{name}')}` and import them again."
        ) from error


def with_published(comparison: Comparison, tables: Iterable[Published], plan: Plan) -> Comparison:
    """The comparison with others' points, and the note that says what they are not."""
    tables = list(tables)
    if not tables:
        return comparison
    points = tuple(point for table in tables for point in table.points)
    files = {file.sha256: file for table in tables for file in table.files}
    note = (
        f"{len(points)} points are {MEANING} ({', '.join(f.file for f in files.values())}). They are shown apart and "
        "ranked with nothing here; their MACs are counted by another tool, their speeds taken on another machine."
    )
    caution = _caution(plan, files.values())
    return comparison.model_copy(
        update={
            "published": points,
            "published_files": tuple(files.values()),
            "notes": (*([caution] if caution else []), *comparison.notes, note),
        }
    )


def published_front(points: Sequence[PublishedPoint], quality: str, cost: str) -> dict[str, list[PublishedPoint]]:
    """Group → its own Pareto front in two metrics, by cost; one group `""` where neither depends on the machine."""
    timed = bool(TIMED & {quality, cost})
    groups: dict[str, list[PublishedPoint]] = {}
    for point in points:
        if quality in point.values and cost in point.values:
            groups.setdefault(point.group if timed else "", []).append(point)
    signs = [1.0 if METRICS[m].direction == "higher" else -1.0 for m in (quality, cost)]
    fronts = {}
    for group, members in groups.items():
        distinct = list({(p.name, p.values[quality], p.values[cost]): p for p in members}.values())
        q, c = (np.array([p.values[metric] for p in distinct]) for metric in (quality, cost))
        optimal = on_front(signs[0] * q, -signs[1] * c)
        kept = [p for p, best in zip(distinct, optimal, strict=True) if best]
        fronts[group] = sorted(kept, key=lambda p: (p.values[cost], p.values[quality]))
    return fronts


def _points(name: str, accuracy: list[Table], tables: list[Table]) -> Iterable[PublishedPoint]:
    timings = [table for table in tables if table.kind == "timing"]
    for table in accuracy:
        timed: set[tuple[str, int]] = set()
        for timing in timings:
            speeds = {(line.architecture, line.image_size): line for line in timing.lines}
            for line in table.lines:
                speed = speeds.get((line.architecture, line.image_size))
                if speed is not None:
                    timed.add((line.model, line.image_size))
                    yield _point(name, timing, line, speed)
        for line in table.lines:
            if (line.model, line.image_size) not in timed:
                yield _point(name, table, line)
    if not accuracy:
        for timing in timings:
            for line in timing.lines:
                yield _point(name, timing, line)


def _point(name: str, table: Table, line: Line, speed: Line | None = None) -> PublishedPoint:
    """A network, with its speed from a benchmark if there is one; what both state is the accuracy table's."""
    extra = speed or line
    return PublishedPoint(
        name=line.model,
        source=name,
        group=_group(table),
        values=extra.values | line.values,
        conditions={"image_size": line.image_size} | extra.conditions | line.conditions,
    )


def _group(table: Table) -> str:
    """The conditions of a file in a few words."""
    told = table.file.conditions
    if table.kind == "accuracy":
        return "no timing"
    words = [told["device"], told.get("precision", ""), told.get("memory_format", "")]
    words += [f"torch {told['torch']}"] if "torch" in told else []
    words += ["compiled"] if told.get("compile") == "yes" else []
    unknown = "torch" not in told
    return table.file.file if unknown else ", ".join(word for word in words if word)


def _summary(made: Published, tables: list[Table]) -> str:
    lines = []
    for table in tables:
        told = ", ".join(f"{key} {value}" for key, value in table.file.conditions.items())
        lines.append(f"{table.file.file}: {counted(len(table.lines), 'network')} ({table.kind}; {told})")
        if table.repeated:
            rows = ", ".join(map(str, table.repeated))
            lines.append(f"  left out, because an earlier row has the same network and size: row {rows}")
    timed = {(p.name, str(p.conditions["image_size"])) for p in made.points if "throughput" in p.values}
    every = {(p.name, str(p.conditions["image_size"])) for p in made.points}
    lines.append(f"published/{made.name}: {counted(len(every), 'network')}, {len(timed)} of them with a speed.")
    lines.append(f"Show them with `slimvit compare EXPERIMENT --published {made.name}`.")
    return "\n".join(lines)


def _caution(plan: Plan, files: Iterable[PublishedFile]) -> str | None:
    """What to say loudly when one's own task is another than theirs."""
    classes = {stage.num_classes for stage in plan.stages.values()}
    data = ", ".join(dict.fromkeys(f.conditions["data"] for f in files if "data" in f.conditions)) or "ImageNet-1k"
    if classes == {_IMAGENET_CLASSES}:
        return None
    own = " and ".join(str(number) for number in sorted(classes)) or "no"
    return (
        f"ANOTHER TASK: this experiment has {own} classes, the published numbers are of {data}. Their accuracies and "
        "these are not comparable at all; only their sizes and speeds give an idea of scale."
    )
