"""What the run may use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from specs.base import SpecModel


class ElasticWorkers(SpecModel):
    """As many workers as there is room for. The global batch, the order of the images and all randomness stay the same,
    so a stage goes on with fewer workers after a node died, and with more once there is room again."""

    min: PositiveInt = 1
    """Fewest workers that a stage is trained on; with room for fewer it waits."""

    max: PositiveInt
    """Most workers. Each stage is trained on a number that shares its batch evenly; where stages that wait need other
    numbers, workers are started anew."""

    @model_validator(mode="after")
    def _in_order(self) -> ElasticWorkers:
        if self.min > self.max:
            raise ValueError(f"`min` {self.min} is more than `max` {self.max}; exchange them")
        return self


class ResourcesSpec(SpecModel):
    """Resources of one lane, how many lanes there are, and what happens on failure. Not part of any digest."""

    workers: PositiveInt | ElasticWorkers = 1
    """Processes a stage is trained on (distributed data parallel), on one node or many; `{min: 1, max: 8}` = as many as
    there is room for."""

    cpus_per_worker: PositiveInt = 1
    """CPU cores a worker; also its number of compute threads on CPU."""

    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs a worker: 0 trains on CPU with gloo, 1 on GPU with nccl; a fraction shares one GPU between lanes."""

    lanes: PositiveInt | None = None
    """Stages trained at the same time; `null` = as many as the cluster's resources hold."""

    max_retries: NonNegativeInt = 3
    """How often in a row, without a new checkpoint in between, a stage is begun again after a worker or its node died
    or the store did not answer. What would happen again (an error of the stage, too little memory) is not tried
    again."""

    max_preemptions: NonNegativeInt | None = None
    """How often a stage is begun again elsewhere after its node was taken away with notice (preempted, drained, told to
    end); `null` = always."""

    stage_deadline_minutes: PositiveFloat | None = None
    """Wall-clock limit of a stage, in minutes; a stage past it fails with that reason. `null` = none."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"a worker takes a share of one GPU or whole ones; {gpus:g} is neither: write {gpus:.0f}")
        return gpus

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may vary."""
        return isinstance(self.workers, ElasticWorkers)

    @property
    def most_workers(self) -> int:
        """Processes a stage is trained on, where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest_workers(self) -> int:
        """Processes that a stage cannot do without."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
