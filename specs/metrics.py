"""One measured number and the conditions it was taken under; the vocabulary of all comparisons."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from specs.base import SpecModel


class MetricDefinition(SpecModel):
    """What a metric means; `docs/metrics.md` says how it is taken."""

    name: str
    """Name used in tables, MLflow and `--only`."""

    unit: str
    """Unit of the value; empty for pure numbers."""

    direction: Literal["higher", "lower", "none"]
    """Which way is better; `none` for values that are no goal."""

    description: str
    """One sentence."""


def _define(name: str, unit: str, direction: Literal["higher", "lower", "none"], text: str) -> MetricDefinition:
    return MetricDefinition(name=name, unit=unit, direction=direction, description=text)


METRICS: dict[str, MetricDefinition] = {
    m.name: m
    for m in (
        _define("top1", "%", "higher", "Share of all validation images whose label is the first prediction."),
        _define(
            "top5", "%", "higher", "Share of all validation images whose label is among the first five predictions."
        ),
        _define(
            "ece", "%", "lower", "Expected calibration error: how far confidence and hit rate lie apart, in 15 bins."
        ),
        _define("worst_class_top1", "%", "higher", "Top-1 of the class that is recognised worst."),
        _define("params", "parameters", "lower", "Parameters of the network as it is deployed."),
        _define("active_params", "parameters", "lower", "Parameters that one image meets, expected over real images."),
        _define(
            "macs", "MACs/image", "lower", "Multiply-accumulates an image, expected over real images where they vary."
        ),
        _define("activations", "elements/image", "lower", "Elements that convolutions and matrix products put out."),
        _define("weights_mib", "MiB", "lower", "Parameters and buffers in the precision that is timed."),
        _define(
            "arithmetic_intensity",
            "FLOPs/byte",
            "none",
            "FLOPs over bytes of weights and activations moved, at batch 1.",
        ),
        _define("throughput", "images/s", "higher", "Images a second at the stated batch size."),
        _define("latency_ms", "ms", "lower", "Time of one image at batch 1; the value is the median."),
        _define("latency_p90_ms", "ms", "lower", "90th percentile of the time of one image at batch 1."),
        _define("latency_p95_ms", "ms", "lower", "95th percentile of the time of one image at batch 1."),
        _define("latency_p99_ms", "ms", "lower", "99th percentile of the time of one image at batch 1."),
        _define(
            "peak_memory_mib", "MiB", "lower", "Peak memory of inference at the largest stated batch size that fits."
        ),
        _define("checkpoint_mib", "MiB", "lower", "Size of the deployed weights on disk."),
        _define(
            "energy_j",
            "J/image",
            "lower",
            "Energy of the device an image at the largest batch size, its idle power taken off.",
        ),
        _define(
            "throughput_ratio", "", "higher", "Throughput over the baseline's, taken in alternation in one process."
        ),
        _define(
            "latency_ratio", "", "lower", "Median latency over the baseline's, taken in alternation in one process."
        ),
        _define("params_ratio", "", "lower", "Parameters over the baseline's."),
        _define("macs_ratio", "", "lower", "MACs over the baseline's."),
        _define("peak_memory_ratio", "", "lower", "Peak memory over the baseline's."),
        _define("checkpoint_ratio", "", "lower", "Checkpoint size over the baseline's."),
        _define("energy_ratio", "", "lower", "Energy an image over the baseline's."),
        _define("train_images_per_s", "images/s", "higher", "Training speed of the last stage."),
        _define("train_seconds", "s", "lower", "Training time of all stages that the combination needs."),
        _define("train_device_hours", "device-h", "lower", "Devices × hours of training of all stages that it needs."),
        _define("train_memory_mib", "MiB", "lower", "Peak memory of one worker that trains the last stage."),
        _define(
            "teacher_share",
            "%",
            "none",
            "Share of the device-hours that goes to teachers: their own training, and answering.",
        ),
    )
}


class MetricRow(SpecModel):
    """One metric of one network. A value that could not be taken is `None`, with the reason."""

    name: str
    """Name of the metric, a key of `METRICS` (or `<strategy>.<name>` for what a strategy reports of itself)."""

    value: float | None
    """The value in `unit`; `None` = could not be taken."""

    unit: str
    """Unit of the value."""

    direction: Literal["higher", "lower", "none"]
    """Which way is better."""

    samples: list[float] = Field(default_factory=list)
    """Raw samples behind the value, in `unit`; at most 200, evenly thinned."""

    summary: dict[str, float] = Field(default_factory=dict)
    """Statistics of all samples: `mean`, `std`, `p5`, `p50`, `p95`, `count`, as far as they apply."""

    interval: tuple[float, float] | None = None
    """95 % confidence interval of the value, where one was estimated: bootstrap over blocks for ratios of timings."""

    conditions: dict[str, JsonValue] = Field(default_factory=dict)
    """What it was taken under: device, precision, batch size, compile, threads, attention kernel, versions."""

    reason: str | None = None
    """Why the value is missing; `None` when it is not."""

    unreliable: str | None = None
    """Why the value should not be trusted (a drifting baseline, a busy device, throttling); `None` when nothing
    speaks against it."""


class OperatingPoint(SpecModel):
    """One setting of a knob that a trained network has (an exit threshold, tokens merged a block), and its metrics.
    All points of a knob together are the network's curve; nothing is trained between them."""

    knob: str
    """`<strategy>.<option>`, for example `early_exit.threshold`."""

    setting: float
    """Value of the option."""

    trained: bool
    """Whether this is the setting of the spec, whose metrics are also the combination's."""

    rows: list[MetricRow]
    """`top1`, `macs`, `throughput`, `throughput_ratio` and `latency_ms` at this setting, as far as they were taken."""


def row(name: str, value: float | None, **rest: object) -> MetricRow:
    """Build a row of a defined metric; unit and direction come from `METRICS`.

    Raises:
        KeyError: if the metric is not defined.
    """
    definition = METRICS[name]
    return MetricRow.model_validate(
        {"name": name, "value": value, "unit": definition.unit, "direction": definition.direction, **rest}
    )
