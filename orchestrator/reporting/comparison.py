"""The comparison as a value: what the table, the report, JSON and CSV are made from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Status = Literal["measured", "partial", "failed", "unfinished"]

NOT_TAKEN = "not taken for this combination"
"""Why a cell is empty that no measurement speaks of; usual for what strategies report of themselves."""


class Frozen(BaseModel):
    """Parts of a comparison are values."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Frozen):
    """One metric, at one batch size where the metric has several."""

    key: str
    """`top1`, or `throughput_b64` for a metric taken at several batch sizes."""
    metric: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    description: str
    batch_size: int | None = None
    """Batch size, for metrics taken at several."""
    ratio: str | None = None
    """Key of the column that holds this one's ratio to the baseline, if there is one."""
    groups: dict[str, dict[str, JsonValue]] = {}
    """Conditions of measurement by the letter of the group; more than one means: not all values are comparable."""
    differences: dict[str, dict[str, JsonValue]] = {}
    """Condition → group → value, where the groups disagree."""


class Cell(Frozen):
    """One metric of one combination over its seeds."""

    value: float | None
    """Mean over the seeds; `None` = missing, with the reason."""
    std: float | None = None
    """Sample standard deviation over the seeds (n − 1); `None` with fewer than two."""
    num_seeds: int = 0
    """Seeds behind the mean."""
    by_seed: dict[int, float] = {}
    """Seed → value."""
    group: str | None = None
    """Letter of the group of conditions; only values of one group are ranked together."""
    best: bool = False
    """Best of its group in this column (and the group is not all equal)."""
    reason: str | None = None
    """Why the value is missing, or why a seed was left out of the mean."""


class Row(Frozen):
    """One combination, all its seeds."""

    name: str
    labels: dict[str, str]
    """Axis → label."""
    seeds: tuple[int, ...]
    """Planned seeds."""
    measured: tuple[int, ...]
    """Seeds that are measured."""
    status: Status
    """`measured`: all seeds are; `partial`: some; `failed`: none, and a stage failed; `unfinished`: none yet."""
    detail: str = ""
    """What is missing, for people; empty when nothing is."""
    pareto: bool = False
    """Pareto-optimal in top-1 (or the chosen quality) against the chosen cost."""
    cells: dict[str, Cell] = {}
    """Column key → cell."""


class StageCost(Frozen):
    """What one stage of the plan took."""

    digest: str
    label: str
    kind: Literal["train", "measure"]
    status: Literal["done", "failed", "to run"]
    combinations: tuple[str, ...]
    """Names of the combinations that need it."""
    seconds: float | None = None
    """Its own running time."""
    images_per_s: float | None = None
    epochs: int | None = None


class Comparison(Frozen):
    """All combinations of an experiment side by side."""

    format_version: int = 1
    experiment: str
    quality: str | None
    """Key of the column on the Pareto figure's upright axis; `None` when no quality is measured yet."""
    cost: str | None
    """Key of the column on its other axis; `None` when it is not measured yet."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    stages: tuple[StageCost, ...]
    stages_alone: int
    """Stages that would have run without sharing."""
    dropped: dict[str, tuple[str, ...]] = {}
    """Combinations left out by the plan → why."""
    notes: tuple[str, ...] = ()
    """What a reader has to know before ranking: differing conditions, missing seeds."""

    def column(self, key: str) -> Column:
        """The column with this key.

        Raises:
            KeyError: if there is none.
        """
        for column in self.columns:
            if column.key == key:
                return column
        raise KeyError(key)

    def find(self, name: str) -> Column | None:
        """The column with this key, or of this metric at the largest batch size; `None` if there is none."""
        fitting = [c for c in self.columns if name in (c.key, c.metric)]
        exact = [c for c in fitting if c.key == name]
        return (exact or sorted(fitting, key=lambda c: c.batch_size or 0))[-1] if fitting else None
