"""What the run may use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from specs.base import SpecModel


class ResourcesSpec(SpecModel):
    """Resources of one lane, how many lanes there are, and what happens on failure. Not part of any digest."""

    workers: PositiveInt = 1
    """Processes a stage is trained on (distributed data parallel)."""

    cpus_per_worker: PositiveInt = 1
    """CPU cores a worker; also its number of compute threads on CPU."""

    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs a worker: 0 trains on CPU with gloo, 1 on GPU with nccl; a fraction shares one GPU between lanes."""

    lanes: PositiveInt | None = None
    """Stages trained at the same time; `null` = as many as the cluster's resources hold."""

    max_retries: NonNegativeInt = 3
    """Restarts of a lane after a worker died, before its stage counts as failed."""

    stage_deadline_minutes: PositiveFloat | None = None
    """Wall-clock limit of a stage, in minutes; a stage past it fails with that reason. `null` = none."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"a worker takes a share of one GPU or whole ones; {gpus:g} is neither: write {gpus:.0f}")
        return gpus
