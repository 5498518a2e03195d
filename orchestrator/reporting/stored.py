"""What finished stages left in the artefact store, read back. Comparison, report and record draw on nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from orchestrator.training.outcomes import Outcomes
from specs.metrics import MetricRow, OperatingPoint

_ROWS = TypeAdapter(list[MetricRow])
_POINTS = TypeAdapter(list[OperatingPoint])


@dataclass(frozen=True)
class Epoch:
    """One line of a stage's `history.jsonl`."""

    epoch: int
    values: dict[str, float]
    """`loss`, `lr`, `images_per_s`, `val_top1`, loss terms; only finite numbers."""


ROWS, POINTS, RESULT = "rows.json", "points.json", "result.json"
HISTORY, OUTCOMES = "history.jsonl", "evaluation.json"


def stage_folder(store: ArtifactStore, digest: str, *files: str) -> Path | None:
    """Local folder of a finished stage; `None` if it is not finished.

    Args:
        files: which are to be read, and are therefore verified; none = all, weights too.

    Raises:
        StoreError: if the artefact is damaged.
    """
    try:
        return store.fetch(f"stages/{digest}", files or None)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(str(error)) from error


def stage_content(store: ArtifactStore, digest: str) -> str | None:
    """SHA-256 of what a finished stage left; `None` if it is not finished.

    Raises:
        StoreError: if the artefact's marker is damaged.
    """
    try:
        return store.content(f"stages/{digest}")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(str(error)) from error


def read_rows(folder: Path) -> list[MetricRow]:
    """Metric rows of a measure stage.

    Raises:
        StoreError: if the file is missing or was not written by this program.
    """
    path = folder / ROWS
    try:
        return _ROWS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _unreadable(path, error) from error


def read_points(folder: Path) -> list[OperatingPoint]:
    """Operating points of a measure stage, by knob and setting; empty where the network has no knob.

    Raises:
        StoreError: if the file was not written by this program.
    """
    path = folder / POINTS
    try:
        return _POINTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise _unreadable(path, error) from error


def read_outcomes(folder: Path) -> Outcomes | None:
    """Confusion matrix and calibration bins of a train stage's final evaluation; `None` if it left none.

    Raises:
        StoreError: if the file was not written by this program.
    """
    path = folder / OUTCOMES
    if not path.exists():
        return None
    try:
        return Outcomes.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def read_result(folder: Path) -> dict[str, Any]:
    """`result.json` of a stage: metrics, seconds, device_hours, teacher_seconds, images_per_s, epochs, steps, …

    Raises:
        StoreError: if the file is missing or not a JSON object.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(result, dict):
        raise _unreadable(path, TypeError("not a JSON object"))
    return result


def read_history(folder: Path) -> list[Epoch]:
    """Per-epoch values of a train stage, in order; empty for a stage of 0 epochs.

    Raises:
        StoreError: if a line is not a JSON object with an epoch.
    """
    path = folder / HISTORY
    if not path.exists():
        return []
    history: dict[int, dict[str, float]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                entry = json.loads(line)
                # The last word on an epoch counts: a resumed stage may have repeated one.
                history[int(entry["epoch"])] = finite(entry.get("values", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    return [Epoch(epoch, values) for epoch, values in sorted(history.items())]


def finite(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers, as floats."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            kept[key] = float(value)
    return kept


def number(value: object) -> float | None:
    """A finite number read from JSON; `None` for anything else."""
    return float(value) if isinstance(value, int | float) and value == value and abs(value) < float("inf") else None


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"cannot read `{path.name}` of the artefact `{path.parent.name}` ({path}): {error}. Delete it (`slimvit store "
        f"delete stages/{path.parent.name}`); `slimvit run` computes what it held anew."
    )
