"""What must be so after every injection. Each check gives violations as sentences; none of them uses the code that it
checks: weights are hashed here, the record is read from the server's database, the log is read as people read it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cluster.storage import ArtifactStore
from tests.chaos.grid import COMBINATIONS, STAGES, Said

WEIGHTS = "model.safetensors"
_SURE = ("loss", "lr", "val_top1")
"""What a stage's history says that no clock has a part in."""


def weights(store: ArtifactStore) -> dict[str, str]:
    """Stage → SHA-256 of its weights; empty text for stages that have none."""
    found = {}
    for name in store.names("stages"):
        file = store.fetch(name) / WEIGHTS
        found[name.partition("/")[2]] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return found


def labels(store: ArtifactStore) -> dict[str, str]:
    """Label → digest of every stage of the plan; nothing if no run came so far."""
    plans = list(store.names("plans"))
    if not plans:
        return {}
    plan = json.loads((store.fetch(plans[-1]) / "plan.json").read_text(encoding="utf-8"))
    return {stage["label"]: digest for digest, stage in plan["stages"].items()}


def check_weights(found: dict[str, str], undisturbed: dict[str, str], told: str = "") -> Iterator[str]:
    """The same stages, and the same bits.

    Args:
        found: what is there.
        undisturbed: what is to be there.
        told: what the runs printed: a stage that they deleted as damaged, and that nothing needs any more, may be away.
    """
    for digest in sorted(undisturbed.keys() | found.keys()):
        if digest not in found and f"stages/{digest}) is damaged and was deleted" in told:
            continue
        if digest not in found:
            yield f"stage {digest[:10]} is not there"
        elif digest not in undisturbed:
            yield f"stage {digest[:10]} belongs to nothing"
        elif found[digest] != undisturbed[digest]:
            yield f"stage {digest[:10]} has other weights than the undisturbed run's"


def check_once(said: list[Said], spared: Collection[str]) -> Iterator[str]:
    """No stage is computed again once it is finished.

    Args:
        said: what all runs told, in order.
        spared: labels of stages whose artefacts were damaged.
    """
    finished = Counter(s.label for s in said if s.kind == "done")
    for label in sorted({s.label for s in said} - set(spared)):
        if finished[label] > 1:
            yield f"`{label}` was finished {finished[label]} times"
        kinds = [s.kind for s in said if s.label == label]
        if "done" in kinds and "begun" in kinds[kinds.index("done") :]:
            yield f"`{label}` was begun again after it was finished"


def check_leases(store: ArtifactStore) -> Iterator[str]:
    """None is left, not even one that was given back."""
    for name in store.register().names():
        yield f"a lease is left on {name}"


def check_record(database: Path, experiment: str, store: ArtifactStore) -> Iterator[str]:
    """Every run and every point is there once, with the values of the store."""
    with contextlib.closing(sqlite3.connect(database)) as server:
        query = "select r.run_uuid, r.status from runs r join experiments e using (experiment_id) "
        query += "where e.name = ? and r.lifecycle_stage = 'active'"
        states: dict[str, str] = dict(server.execute(query, (experiment,)).fetchall())
        tags: dict[str, dict[str, str]] = {run: {} for run in states}
        for run, key, value in server.execute("select run_uuid, key, value from tags"):
            if run in tags:
                tags[run][key] = value
        points: dict[str, list[tuple[str, int, float]]] = {run: [] for run in states}
        for run, key, step, value in server.execute("select run_uuid, key, step, value from metrics"):
            if run in points:
                points[run].append((key, step, value))
    names = {run: f"{t.get('slimvit.kind')}:{t.get('slimvit.key')}" for run, t in tags.items()}
    for name, count in Counter(names.values()).items():
        if count > 1:
            yield f"MLflow has {count} runs `{name[:40]}`"
    for run, state in states.items():
        if state != "FINISHED":
            yield f"MLflow says that run `{names[run][:40]}` is {state}"
        for (key, step), count in Counter((key, step) for key, step, _ in points[run]).items():
            if count > 1:
                yield f"MLflow has `{key}` of `{names[run][:40]}` at step {step} {count} times"
    if (kinds := Counter(t.get("slimvit.kind") for t in tags.values())) != {
        "experiment": 1,
        "combination": COMBINATIONS,
        "stage": STAGES,
    }:
        yield f"MLflow has other runs than the plan: {dict(kinds)}"
    runs = {name.partition(":")[2]: run for run, name in names.items()}
    for name in store.names("stages"):
        digest, folder = name.partition("/")[2], store.fetch(name)
        if (folder / "history.jsonl").is_file() and digest in runs:
            held = {(key, step): value for key, step, value in points[runs[digest]]}
            yield from _check_curve(digest, folder / "history.jsonl", held)


def _check_curve(digest: str, history: Path, held: dict[tuple[str, int], float]) -> Iterator[str]:
    for line in history.read_text(encoding="utf-8").splitlines():
        epoch: dict[str, Any] = json.loads(line)
        for key, value in epoch["values"].items():
            there = held.get((key, epoch["epoch"]))
            if there is None:
                yield f"MLflow lacks `{key}` of stage {digest[:10]} at epoch {epoch['epoch']}"
            elif key in _SURE and there != value:
                yield f"MLflow has {there} as `{key}` of stage {digest[:10]} at epoch {epoch['epoch']}, not {value}"
