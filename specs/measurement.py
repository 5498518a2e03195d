"""The conditions under which every network of an experiment is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from specs.base import SpecModel
from specs.model import ModelSpec


class MeasurementSpec(SpecModel):
    """Measurement conditions; the same for every combination, so that rows can be compared."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured; `auto` = the device that trains."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations during timing."""

    compile: bool = False
    """Time the compiled network instead of the eager one."""

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
