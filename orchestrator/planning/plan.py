"""The plan: a directed acyclic graph of content-addressed stages, and the combinations that end in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from specs.data import DataSpec
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec
from specs.strategy import AnyStrategy
from specs.training import TrainingSpec


class Frozen(BaseModel):
    """Plan objects are values."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSource(Frozen):
    """Where a network (the student's start, or the teacher) comes from; exactly one of the four is set."""

    stage: str | None = None
    """Digest of the training stage whose final artefact holds the network."""

    checkpoint: str | None = None
    """Absolute path of a checkpoint; `model` is set too when the file holds bare timm weights."""

    model: ModelSpec | None = None
    """A timm network, its arguments complete (`img_size`, `num_classes`, `in_chans`)."""

    store: str | None = None
    """Of a teacher: digest of the store stage whose answers are read in the network's place."""

    image_size: int | None = None
    """Of a teacher: side in pixels that the images are resampled to for it; `None` = as the student sees them."""


class TrainStage(Frozen):
    """Train (or, with 0 epochs, assemble) one network."""

    kind: Literal["train"] = "train"
    alone: ClassVar[bool] = False
    """Whether it runs only while nothing else does, on one worker."""
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
    other_teachers: tuple[NetworkSource, ...] = ()
    """Further teachers, in the spec's order, as far as a strategy needs them."""
    strategies: tuple[AnyStrategy, ...]
    training: TrainingSpec
    data: DataSpec
    num_classes: int
    seed: int
    images_seed: int | None = None
    """Seed of augmentation and mixing where that is not the stage's own: a stored teacher's."""

    @property
    def epochs(self) -> int:
        """Passes over the images."""
        return self.training.epochs

    @property
    def teachers(self) -> tuple[NetworkSource, ...]:
        """All teachers, the first one first."""
        return () if self.teacher is None else (self.teacher, *self.other_teachers)


class StoreStage(Frozen):
    """Write a teacher's answers to every training image as it looks in every epoch."""

    kind: Literal["store"] = "store"
    alone: ClassVar[bool] = False
    digest: str
    label: str
    digest_parts: dict[str, JsonValue]
    """`images` in it says what the teacher sees; readers compare it with what they are to see."""
    parents: tuple[str, ...]
    """The stage that trained the teacher, if one did."""
    teacher: NetworkSource
    model: ModelSpec
    """The teacher's timm network, its arguments complete."""
    top_k: int
    """Classes kept of each answer."""
    epochs: int
    training: TrainingSpec
    """How the images reach the teacher; only augmentation, batches and precision matter."""
    data: DataSpec
    num_classes: int
    seed: int
    """Of augmentation and mixing."""
    num_answers: int
    """Images answered in an epoch."""
    num_bytes: int
    """Size of all shards."""


class MeasureStage(Frozen):
    """Measure the network that a training stage left, on an otherwise idle machine."""

    kind: Literal["measure"] = "measure"
    alone: ClassVar[bool] = True
    epochs: ClassVar[int] = 0
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


Stage = TrainStage | StoreStage | MeasureStage


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


class SearchPlan(Frozen):
    """How far a search is, whose trials are the combinations of a plan."""

    digest: str
    """Name of its ledger."""
    algorithm: Literal["grid", "random", "optuna"]
    space: dict[str, str]
    """Dimension → its values, for people."""
    num_trials: int
    """Trials in the end."""
    proposed: int
    """Trials so far; equal ones are one combination."""
    judged: int
    """Of those, trials that the searcher has been told of."""


class Plan(Frozen):
    """All stages of an experiment, each once, parents before children."""

    experiment: str
    stages: dict[str, Annotated[Stage, Field(discriminator="kind")]]
    """Digest → stage, in an order in which parents come first."""
    combinations: tuple[Combination, ...]
    dropped: tuple[Dropped, ...] = ()
    search: SearchPlan | None = None
    """The search that proposes the combinations; `None` = they are written out."""
    stopped: dict[str, str] = {}
    """Combination that was given up early → on what evidence. Its unfinished stages are not needed any more."""

    def walk(self) -> Iterator[Stage]:
        """All stages, parents first."""
        return iter(self.stages.values())

    def stages_alone(self) -> int:
        """Stages that would run if each combination ran alone."""
        return sum(len(c.stages) for c in self.combinations)
