"""The whole spec: one experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from specs.address import checked_endpoint, checked_place
from specs.base import SpecModel
from specs.cluster import ClusterSpec
from specs.data import DataSpec
from specs.matrix import MatrixSpec
from specs.measurement import MeasurementSpec
from specs.model import InitSpec, ModelSpec, TeacherSpec
from specs.resources import ResourcesSpec
from specs.search import SearchSpec
from specs.strategy import AnyStrategy
from specs.training import TrainingSpec

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class StageSpec(SpecModel):
    """One stage: where the weights come from, who teaches, which strategies act, and how it trains."""

    name: Name
    """Name of the stage, unique in the experiment; other stages and the matrix refer to it."""

    model: ModelSpec | None = None
    """Network of this stage; `null` = the experiment's `student` (or, with `init.stage`, that stage's network)."""

    init: InitSpec = Field(default_factory=InitSpec)
    """Where the weights come from."""

    teacher: TeacherSpec | None = None
    """Who teaches in this stage; `null` = the experiment's `teacher`. Used only if a strategy needs a teacher."""

    strategies: list[AnyStrategy] = Field(default_factory=list)
    """Strategies of this stage in every combination; the matrix appends to them."""

    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """Training schedule."""

    seed: NonNegativeInt | None = None
    """Seed of this stage; `null` = the experiment's."""


class StorageSpec(SpecModel):
    """Where finished stages live."""

    root: str = "slimvit-store"
    """Folder (local disk or shared mount) of the artefact store, or `s3://BUCKET/PREFIX`; relative paths count from
    where the command runs, `~` and `${VARIABLE}` are expanded. Credentials come from the environment or `~/.aws`, never
    from a spec."""

    endpoint: str | None = None
    """Address of an S3-compatible store, `http(s)://HOST:PORT`, for a root that begins with `s3://`; `null` =
    AWS_ENDPOINT_URL if it is set, else Amazon's."""

    @field_validator("root")
    @classmethod
    def _root_is_a_place(cls, root: str) -> str:
        return checked_place(root)

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_one(cls, endpoint: str | None) -> str | None:
        return endpoint if endpoint is None else checked_endpoint(endpoint)

    @model_validator(mode="after")
    def _endpoint_belongs_to_a_bucket(self) -> StorageSpec:
        if self.endpoint is not None and not self.root.startswith("s3://"):
            raise ValueError("`endpoint` goes with a `root` that begins with `s3://`")
        return self


class TrackingSpec(SpecModel):
    """Where the record goes."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking address: `sqlite:///FILE` or `http(s)://HOST:PORT`. Credentials come from the environment
    (`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`); a spec that holds some is
    refused."""

    experiment: str | None = None
    """MLflow experiment; `null` = the name of this experiment."""

    @field_validator("uri")
    @classmethod
    def _is_an_address(cls, uri: str) -> str:
        if not uri.startswith(("sqlite:///", "http://", "https://")):
            raise ValueError(f"`{uri}` is no tracking address; write `sqlite:///FILE`, or `http(s)://HOST:PORT`")
        return uri


class Experiment(SpecModel):
    """One spec file."""

    name: Name
    """Name of the experiment: letters, digits and `_ . -`."""

    description: str = ""
    """What is asked, in a sentence; shown in reports."""

    data: DataSpec
    """Images."""

    student: ModelSpec
    """The network that is made efficient."""

    teacher: TeacherSpec | None = None
    """Default teacher of stages that name none."""

    stages: Annotated[list[StageSpec], Field(min_length=1)]
    """Stages in order; a stage may only refer to earlier ones. The last stage's network is the result."""

    matrix: MatrixSpec = Field(default_factory=MatrixSpec)
    """Combinations to compare."""

    search: SearchSpec | None = None
    """Search over hyper-parameters and options, in place of a matrix that is written out; `null` = none."""

    seed: NonNegativeInt = 0
    """Seed of every stage that has none."""

    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What the run may use."""

    cluster: ClusterSpec | None = None
    """Where its machines come from, for `slimvit cluster`; `null` = this machine, for the time of a run. Not part of
    any digest."""

    measurement: MeasurementSpec = Field(default_factory=MeasurementSpec)
    """Measurement conditions."""

    storage: StorageSpec = Field(default_factory=StorageSpec)
    """Artefact store."""

    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    """MLflow."""

    @model_validator(mode="after")
    def _stages_refer_back(self) -> Experiment:
        earlier: list[str] = []
        for i, stage in enumerate(self.stages):
            if stage.name in earlier:
                raise ValueError(f"two stages are named `{stage.name}`; names must be unique")
            for what, name in (("init.stage", stage.init.stage), *_stages_that_teach(stage.teacher)):
                if name is not None and name not in earlier:
                    known = ", ".join(f"`{e}`" for e in earlier) or "none"
                    raise ValueError(f"`stages.{i}.{what}` names `{name}`, but the stages before it are: {known}")
            earlier.append(stage.name)
        for what, name in _stages_that_teach(self.teacher):
            if name is not None and name not in earlier:
                raise ValueError(f"`{what}` names `{name}`, which is no stage of this experiment")
        return self


def _stages_that_teach(teacher: TeacherSpec | None) -> list[tuple[str, str | None]]:
    """Field and stage of every teacher."""
    if teacher is None:
        return []
    further = [(f"teacher.also.{i}.stage", one.stage) for i, one in enumerate(teacher.also)]
    return [("teacher.stage", teacher.stage), *further]
