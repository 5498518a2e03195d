"""`slimvit measure`: a network with or without strategies, measured without training it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from pydantic import TypeAdapter

from orchestrator.errors import UsageError
from orchestrator.measurement.baseline import at_input_of
from orchestrator.measurement.conditions import Settings
from orchestrator.measurement.images import random_images
from orchestrator.measurement.measure import MEASURABLE, Measurement
from orchestrator.measurement.memory import Precision
from orchestrator.measurement.network import Recipe
from specs.measurement import MeasurementSpec
from specs.metrics import MetricRow
from specs.model import ModelSpec
from specs.problems import listed
from specs.strategy import StrategyConfig
from strategies import registry
from strategies.catalog import facts_of

RANDOM_IMAGES = 32
"""Noise images; all of them look alike to a network with random weights."""


def measure_model(
    model: ModelSpec,
    strategies: Sequence[StrategyConfig] = (),
    *,
    batch_sizes: Sequence[int] = (1, 64),
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    threads: int | None = None,
    only: Sequence[str] = (),
    seconds: float = 2.0,
) -> list[MetricRow]:
    """Measure a network with random weights on random images, beside the default baseline.

    For a network whose cost depends on what it sees, that says little of what it will cost after training on real
    images; the conditions of its rows say so. Strategies that only train leave nothing to measure.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        threads: compute threads on CPU; `None` = one for each processor that this process may use.
        only: names of metrics; none = all that need no training.
        seconds: for each timed quantity.

    Raises:
        UsageError: if the device is not there or a metric needs training.
        ValueError: if the network cannot be built, or the strategies do not fit it.
    """
    untaken = [name for name in only if name not in MEASURABLE]
    if untaken:
        raise UsageError(
            f"--only: {listed(untaken)} come from training and are in `slimvit compare`; "
            f"without training there are {listed(MEASURABLE)}"
        )
    for config in strategies:
        if registry.build(config).moments():
            raise UsageError(
                f"--strategy {config.name}: with these options the network is cut while it trains. Measure what a "
                "stage has trained, or leave `steps` and `importance` out"
            )
    facts = facts_of(model)
    reference = MeasurementSpec().baseline
    assert reference is not None, "the default has one"
    baseline = at_input_of(facts, reference, facts.image_size)
    random = model.model_copy(update={"pretrained": False})
    measurement = Measurement(
        student=Recipe(model=random, strategies=tuple(s.model_dump(mode="json") for s in strategies)),
        baseline=Recipe(model=baseline),
        no_baseline="",
        images=random_images(RANDOM_IMAGES, (facts.in_chans, facts.image_size, facts.image_size)),
        images_are="random images, random weights",
        settings=Settings(
            _device(device),
            TypeAdapter(Precision).validate_python(precision),
            compile=compiled,
            threads=threads or _processors(),
            batch_sizes=tuple(batch_sizes),
            seconds=seconds,
        ),
        wanted=frozenset(only or MEASURABLE),
    )
    return measurement.run()


def as_json(rows: Sequence[MetricRow]) -> str:
    """The rows as a JSON list."""
    return TypeAdapter(list[MetricRow]).dump_json(list(rows), indent=1).decode()


def as_text(rows: Sequence[MetricRow]) -> str:
    """The rows as a table: metric, batch size, value, unit, and the reason where there is no value.

    Below stand the conditions, and why values marked `*` should not be trusted.
    """
    cells = [("metric", "batch", "value", "unit")]
    for row in rows:
        batch = str(row.conditions.get("batch_size", ""))
        value = "—" if row.value is None else _number(row.value) + ("*" if row.unreliable else "")
        interval = "" if row.interval is None else f" 95 % in [{_number(row.interval[0])}, {_number(row.interval[1])}]"
        cells.append((row.name, batch, value, (row.reason or row.unit) + interval))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = [f"{n:<{widths[0]}}  {b:>{widths[1]}}  {v:>{widths[2]}}  {u}".rstrip() for n, b, v, u in cells]
    kept = max((row.conditions for row in rows), key=len, default={})
    named = [f"{k}: {v}" for k, v in kept.items() if k not in ("batch_size", "baseline") and v is not None]
    reference = next((row.conditions["baseline"] for row in rows if "baseline" in row.conditions), None)
    if isinstance(reference, dict):
        named.append(f"baseline: {reference['model']} {reference['args']}")
    doubts = dict.fromkeys(f"* unreliable: {row.unreliable}" for row in rows if row.unreliable)
    return "\n".join([*lines, "", *named, *([""] if doubts else []), *doubts])


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no GPU that torch can use; measure with `--device cpu`")
    return torch.device("cuda:0" if name == "cuda" else name)


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
