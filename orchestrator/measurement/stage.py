"""A measure stage: the network that a training stage left, into committed metric rows."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from orchestrator.errors import ResourceError
from orchestrator.measurement.baseline import at_input_of
from orchestrator.measurement.conditions import Settings
from orchestrator.measurement.images import validation_images
from orchestrator.measurement.measure import Measurement
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.operating import Accuracy, measure_points
from orchestrator.measurement.trained import rows_of
from orchestrator.measurement.training_memory import Training
from orchestrator.planning.plan import MeasureStage, TrainStage
from orchestrator.planning.validation_set import validation_set
from orchestrator.training.checkpoint import DESCRIPTION
from orchestrator.training.finished import fetched, result_of
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext
from orchestrator.training.outcomes import Outcomes
from orchestrator.training.settle import settle
from specs.measurement import MeasurementSpec
from specs.metrics import MetricRow, OperatingPoint
from specs.model import ModelSpec
from specs.strategy import RESOLVER_KEY
from strategies import registry
from strategies.catalog import facts_of

ROWS = TypeAdapter(list[MetricRow])
POINTS = TypeAdapter(list[OperatingPoint])


def run_measure_stage(stage: MeasureStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """Measure and commit `stages/<digest>`, with `rows.json` and `points.json`. Returns the content of `result.json`.

    The process should have the machine to itself: what else runs slows what is timed.

    Raises:
        StageInterrupted: if it was asked to stop; nothing is kept of half a measurement.
        ResourceError: if the device is not there.
        StoreError: if the trained network is missing or damaged.
        DataError: if validation images are missing.
    """
    name = f"stages/{stage.digest}"
    if io.store.committed(name):
        return result_of(io.store, name)
    _check_stop(stage, io)
    io.report(Progress("start", stage.digest))
    started = time.monotonic()
    artefact = fetched(io.store, f"stages/{stage.parents[0]}")
    settings = _settings(stage.measurement, context)
    images = validation_images(stage.data, stage.measurement.images)
    baseline, no_baseline = _baseline(stage, artefact)
    trained = TrainStage.model_validate_json(
        (artefact / "stage.json").read_bytes(), context={RESOLVER_KEY: registry.resolver}
    )
    result_of_training = json.loads((artefact / "result.json").read_text(encoding="utf-8"))
    measurement = Measurement(
        student=Recipe(artefact=artefact),
        baseline=None if baseline is None else Recipe(model=baseline),
        no_baseline=no_baseline,
        images=images,
        images_are=f"{len(images)} validation images of {validation_set(stage)}",
        settings=settings,
        training=Training(trained, io.store, result_of_training["environment"]["workers"]),
    )
    outcomes = Outcomes.from_json((artefact / "evaluation.json").read_text(encoding="utf-8"))
    rows = rows_of(trained, result_of_training, outcomes) + measurement.run()
    accuracy = Accuracy(trained, artefact, stage.data, settings.device, context.threads)
    points = measure_points(
        stage.operating_points, artefact, measurement, rows, accuracy.top1_at, lambda: _check_stop(stage, io)
    )

    result = {"metrics": _by_name(rows), "seconds": time.monotonic() - started}
    folder = io.scratch / "measured"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "rows.json").write_bytes(ROWS.dump_json(rows, indent=1))
    (folder / "points.json").write_bytes(POINTS.dump_json(points, indent=1))
    (folder / "stage.json").write_text(stage.model_dump_json(indent=1), encoding="utf-8")
    return settle(io.store, name, folder, result)


def _check_stop(stage: MeasureStage, io: StageIO) -> None:
    if io.should_stop():
        raise StageInterrupted(f"`{stage.label}` stopped; it begins anew next time")


def _settings(spec: MeasurementSpec, context: WorkerContext) -> Settings:
    device = context.device if spec.device == "auto" else spec.device
    if spec.device == "cuda":
        if not torch.cuda.is_available():
            raise ResourceError(
                "`measurement.device` is `cuda`, but the worker that measures has no GPU. Set "
                "`resources.gpus_per_worker`, or `measurement.device: auto`."
            )
        device = context.device if context.device.startswith("cuda") else "cuda:0"
    return Settings(
        device=torch.device(device),
        precision=spec.precision,
        compile=spec.compile,
        threads=spec.threads or context.threads,
        batch_sizes=tuple(spec.batch_sizes),
        seconds=spec.seconds,
        max_drift=spec.max_drift,
        attempts=spec.attempts,
    )


def _baseline(stage: MeasureStage, artefact: Path) -> tuple[ModelSpec | None, str]:
    """The baseline at the student's input, or why there is none."""
    if stage.measurement.baseline is None:
        return None, "`measurement.baseline` is null"
    model = json.loads((artefact / DESCRIPTION).read_text(encoding="utf-8"))["model"]
    try:
        student = facts_of(ModelSpec.model_validate(model))
        return at_input_of(student, stage.measurement.baseline, stage.input_size), ""
    except ValueError as error:
        return None, f"the baseline cannot be built at {stage.input_size} px: {error}"


def _by_name(rows: list[MetricRow]) -> dict[str, float]:
    """Values by metric, with `@<batch size>` behind those that are taken at several."""
    values = {}
    for row in rows:
        at = f"@{row.conditions['batch_size']}" if row.name.startswith("throughput") else ""
        if row.value is not None:
            values[row.name + at] = row.value
    return values
