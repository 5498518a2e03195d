"""The plan: a directed acyclic graph of content-addressed stages, and the combinations that end in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from specs.data import DataSpec
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec
from specs.strategy import AnyStrategy
from specs.training import TrainingSpec


class Frozen(BaseModel):
    """Plan objects are values."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSource(Frozen):
    """Where a network (the student's start, or the teacher) comes from; exactly one of the three is set."""

    stage: str | None = None
    """Digest of the training stage whose final artefact holds the network."""

    checkpoint: str | None = None
    """Absolute path of a checkpoint; `model` is set too when the file holds bare timm weights."""

    model: ModelSpec | None = None
    """A timm network, its arguments complete (`img_size`, `num_classes`, `in_chans`)."""


class TrainStage(Frozen):
    """Train (or, with 0 epochs, assemble) one network."""

    kind: Literal["train"] = "train"
    digest: str
    """64 hex digits; the name of the stage's artefact."""
    label: str
    """Stage name in the spec plus the axis labels that matter to it, for people: `student[distill=soft]`."""
    digest_parts: dict[str, JsonValue]
    """What the digest was taken over, by part, for `explain`."""
    parents: tuple[str, ...]
    """Digests of the stages this one reads (initialisation, teacher)."""
    student: NetworkSource
    teacher: NetworkSource | None
    """`None` when no strategy of the stage needs one."""
    strategies: tuple[AnyStrategy, ...]
    training: TrainingSpec
    data: DataSpec
    num_classes: int
    seed: int


class MeasureStage(Frozen):
    """Measure the network that a training stage left, on an otherwise idle machine."""

    kind: Literal["measure"] = "measure"
    digest: str
    label: str
    digest_parts: dict[str, JsonValue]
    parents: tuple[str, ...]
    """The one training stage that is measured."""
    measurement: MeasurementSpec
    data: DataSpec
    num_classes: int
    input_size: int
    """Side of the student's input in pixels; the baseline is built at this size."""
    operating_points: dict[str, list[float]] = {}
    """Knob, as `<strategy>.<option>` → settings, ascending, the trained one among them; all are possible."""


Stage = TrainStage | MeasureStage


class Combination(Frozen):
    """One cell of the matrix with one seed."""

    name: str
    """Axis labels without seeds, for example `merging=r2,distill=soft`; `default` without axes."""
    labels: dict[str, str]
    """Axis → label, without seed axes."""
    seed: int
    """Seed of the experiment in this combination."""
    stages: tuple[str, ...]
    """Digests of all stages it needs, parents first; the last is its measurement."""

    @property
    def measured_by(self) -> str:
        """Digest of its measurement."""
        return self.stages[-1]

    @property
    def result(self) -> str:
        """Digest of the training stage whose network is the result."""
        return self.stages[-2]


class Dropped(Frozen):
    """A combination that the plan leaves out because its strategies conflict."""

    name: str
    reasons: tuple[str, ...]


class Plan(Frozen):
    """All stages of an experiment, each once, parents before children."""

    experiment: str
    stages: dict[str, TrainStage | MeasureStage]
    """Digest → stage, in an order in which parents come first."""
    combinations: tuple[Combination, ...]
    dropped: tuple[Dropped, ...] = ()

    def walk(self) -> Iterator[TrainStage | MeasureStage]:
        """All stages, parents first."""
        return iter(self.stages.values())

    def stages_alone(self) -> int:
        """Stages that would run if each combination ran alone."""
        return sum(len(c.stages) for c in self.combinations)
