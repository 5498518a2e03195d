"""The conditions under which every network of an experiment is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from specs.base import SpecModel
from specs.model import ModelSpec


class MeasurementSpec(SpecModel):
    """Measurement conditions; the same for every combination, so that rows can be compared."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured; `auto` = the device that trains."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations during timing."""

    compile: bool = False
    """Time the compiled network instead of the eager one; needs a C++ compiler (`g++`) on every node."""

    threads: PositiveInt | None = None
    """Compute threads on CPU; `null` = `resources.cpus_per_worker`."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = Field(default_factory=lambda: [1, 64])
    """Batch sizes at which throughput is taken. One that does not fit in memory is reported as such."""

    seconds: PositiveFloat = 2.0
    """Time spent on each timed quantity after the warm-up, for the network and its baseline together, in seconds."""

    images: PositiveInt = 256
    """Real validation images over which costs that depend on the input are averaged."""

    baseline: ModelSpec | None = Field(default_factory=lambda: ModelSpec(model="vit_tiny_patch16_224"))
    """Reference network, timed in alternation with each combination in one process, at the student's input size;
    `null` = no ratios."""

    operating_points: dict[str, list[float]] | None = None
    """Settings at which strategies with a runtime knob are measured besides their own, by `<strategy>.<option>`, for
    example `{early_exit.threshold: [0.5, 0.8]}`; `null` = the strategies' own sweeps; `{}` = none."""

    max_drift: Annotated[float, Field(gt=0)] = 5.0
    """Drift of the baseline between start and end of a measurement that is accepted, in percent of its speed. Beyond it
    the measurement is repeated."""

    attempts: PositiveInt = 2
    """How often something is timed at most while the device is not quiet; then it is marked unreliable."""

    repeat: NonNegativeInt = 0
    """Number of this repetition: another number measures again what is measured already under the same conditions, for
    example on another machine."""
