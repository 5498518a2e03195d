"""The comparison as a value: what the table, the report, JSON and CSV are made from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Status = Literal["measured", "partial", "failed", "unfinished", "stopped"]

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
    interval: tuple[float, float] | None = None
    """95 % interval of a single measurement, if the row has one; with several seeds the spread says more."""
    unreliable: str | None = None
    """Why the value should not be trusted; shown with a mark, and never best nor Pareto-optimal."""
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
    """`measured`: all seeds are; `partial`: some; `failed`: none, and a stage failed; `unfinished`: none yet;
    `stopped`: a search gave it up before all seeds were."""
    detail: str = ""
    """What is missing, for people; of a combination that was stopped, on what evidence. Empty when nothing is."""
    pareto: bool = False
    """Pareto-optimal in top-1 (or the chosen quality) against the chosen cost."""
    front_probability: float | None = None
    """Probability to be on the front, over the seeds; `None` without a point, or where nothing has two seeds."""
    cells: dict[str, Cell] = {}
    """Column key → cell."""


class StageCost(Frozen):
    """What one stage of the plan took."""

    digest: str
    label: str
    kind: Literal["train", "store", "measure"]
    status: Literal["done", "failed", "to run"]
    combinations: tuple[str, ...]
    """Names of the combinations that need it."""
    seconds: float | None = None
    """Its own running time."""
    images_per_s: float | None = None
    epochs: int | None = None
    device_hours: float | None = None
    """Workers × hours."""
    teacher_seconds: float | None = None
    """Of `seconds`, those in which a teacher answered."""


class CurvePoint(Frozen):
    """A combination at one setting of a knob."""

    setting: float
    trained: bool
    """The setting of the spec."""
    cells: dict[str, Cell]
    """Column key → cell, as in a row."""


class Curve(Frozen):
    """One trained network over the settings of one knob."""

    combination: str
    knob: str
    """`<strategy>.<option>`."""
    points: tuple[CurvePoint, ...]
    """By setting."""


class Hypervolume(Frozen):
    """Area that the Pareto front dominates, in the units of its axes; larger is better."""

    value: float
    std: float | None
    """Over draws of the means; `None` where nothing has two seeds."""
    reference: tuple[float, float]
    """The corner it is taken from (quality, cost): the worst value of each axis among the combinations."""
    group: str
    """Letters of the conditions on both axes."""


class Effect(Frozen):
    """What a choice on one axis does to a metric, averaged over everything else; or what two do together beyond that.

    For one label: mean over all pairs of runs that differ in nothing but this label and the axis's first one.
    For two: how much the first's effect changes when the second is there too (difference of differences)."""

    labels: dict[str, str]
    """Axis → label; one entry for a main effect, two for an interaction."""
    against: dict[str, str]
    """Axis → label it is compared with."""
    column: str
    """Key of the column."""
    relative: bool = False
    """Whether the value is a change in percent of the metric (from ratios, averaged as logarithms), as for costs,
    instead of a difference in percentage points, as for top-1. 0 = no effect."""
    value: float
    """In `unit`."""
    std_error: float | None
    """Standard error of the value over seeds, in `unit`: all pairs of one seed are one observation. `None` with fewer
    than two seeds, and where the seeds agree to the last digit (counts)."""
    num_pairs: int
    """Pairs (or quadruples) of runs behind it; where the seeds agree, those of one seed alone."""
    alone: dict[str, float] = {}
    """Of an interaction: axis → effect of this label without the other one, over the same runs, in `unit`."""

    @property
    def unit(self) -> str:
        """Unit of the value: `%` of the metric, or `points`."""
        return "%" if self.relative else "points"

    def on_top(self, axis: str) -> float:
        """Of an interaction: effect of this axis's label where the other label is there, too."""
        if self.relative:
            return 100 * ((1 + self.alone[axis] / 100) * (1 + self.value / 100) - 1)
        return self.alone[axis] + self.value


class ClaimPart(Frozen):
    """One condition of a claim, checked: `throughput_ratio >= 2.4`."""

    text: str
    value: float | None
    holds: bool | None
    """`None` = cannot be told, with the reason."""
    reason: str = ""


class ClaimResult(Frozen):
    """A claim about the best combination under a budget, computed from the stored rows."""

    text: str
    budget: str
    """The constraint that chooses candidates: `params < 15000000`."""
    combination: str | None
    """The most accurate combination under the budget; `None` if there is none."""
    parts: tuple[ClaimPart, ...]


class PublishedFile(Frozen):
    """A file of numbers that others measured, as it was imported."""

    file: str
    """Its name, without folders."""
    sha256: str
    """Digest of its bytes, hex."""
    conditions: dict[str, str] = {}
    """What the file's name tells of how its numbers were taken: data, device, precision, framework."""


class PublishedPoint(Frozen):
    """A network that others measured, under their conditions."""

    name: str
    source: str
    """Which imported table it comes from."""
    group: str
    """Name of the conditions: only points of one group were taken alike."""
    values: dict[str, float]
    """Metric → value, in our units."""
    conditions: dict[str, JsonValue] = {}
    """What its lines tell: image size, crop, interpolation, batch size."""


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
    hypervolumes: tuple[Hypervolume, ...] = ()
    """One for each group of conditions that has a front."""
    curves: tuple[Curve, ...] = ()
    effects: tuple[Effect, ...] = ()
    claims: tuple[ClaimResult, ...] = ()
    published: tuple[PublishedPoint, ...] = ()
    """Others' measurements under others' conditions; never ranked with ours."""
    published_files: tuple[PublishedFile, ...] = ()
    """Where they come from."""
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
