"""The search: which values of the spec are tried out, who proposes them, and when a trial is given up early."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator

from specs.base import SpecModel
from specs.metrics import METRICS
from specs.problems import listed, nearest

Whole = int
"""`int` by another name, because a dimension has a field of that name."""

DIGITS = 4
"""Significant digits of a value drawn from a range of numbers."""


class Dimension(SpecModel):
    """What one path of the spec may be: exactly one of `values`, `uniform`, `loguniform` or `int`."""

    values: Annotated[list[JsonValue], Field(min_length=1)] | None = None
    """These values; without an order between them."""

    uniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Numbers from the first to the second, all equally likely; rounded to four significant digits."""

    loguniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Numbers from the first to the second, every order of magnitude equally likely; rounded to four significant
    digits."""

    int: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None
    """Whole numbers from the first to the second, both included."""

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [kind for kind in ("values", "uniform", "loguniform", "int") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                "a dimension needs exactly one of `values`, `uniform`, `loguniform`, `int`; found "
                + (" and ".join(f"`{kind}`" for kind in kinds) or "none")
            )
        low_high = self.bounds
        if low_high is not None and not low_high[0] < low_high[1]:
            raise ValueError(f"`{kinds[0]}` goes from the smaller to the larger number, in that order")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("`loguniform` needs numbers above 0; for a range with 0 write `uniform`")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends of a range; `None` for single values."""
        found = self.uniform or self.loguniform or self.int
        return None if found is None else (found[0], found[1])

    def choices(self) -> list[JsonValue] | None:
        """All values, if they can be counted: a grid goes through them."""
        if self.int is not None:
            return list(range(self.int[0], self.int[1] + 1))
        return self.values

    def extremes(self) -> list[JsonValue]:
        """Values that show whether the whole dimension fits the spec: all single ones, both ends of a range."""
        if self.values is not None:
            return self.values
        low, high = self.uniform or self.loguniform or self.int or (0, 0)
        return [low, high]

    def rounded(self, value: JsonValue) -> JsonValue:
        """A drawn value as it is used: floats with four significant digits, inside the range still."""
        if not isinstance(value, float) or self.bounds is None:
            return value
        low, high = self.bounds
        digits = DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
        return min(max(round(value, digits), low), high)


class Objective(SpecModel):
    """One metric that the search makes better; which way is better belongs to the metric."""

    metric: str
    """Name of a metric with a direction (`docs/metrics.md`). Of one that is taken at several batch sizes, the value at
    the largest."""

    @field_validator("metric")
    @classmethod
    def _has_a_direction(cls, metric: str) -> str:
        known = [name for name, definition in METRICS.items() if definition.direction != "none"]
        if metric not in known:
            near = nearest(metric, known)
            reason = "is no goal: neither more nor less of it is better" if metric in METRICS else "is no metric"
            raise ValueError(
                f"`{metric}` {reason}" + (f"; did you mean `{near}`?" if near else f". Metrics: {listed(known)}")
            )
        return metric

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return METRICS[self.metric].direction == "higher"


class AshaSpec(SpecModel):
    """Asynchronous successive halving (arXiv:1810.05934), as Ray Tune does it, on the top-1 of the last stage that
    trains. A trial is judged after `grace_epochs`, `grace_epochs × reduction_factor`, … epochs, and stopped unless it
    reaches the best `1 / reduction_factor` of those that were judged there before it."""

    grace_epochs: PositiveInt = 1
    """Epochs that every trial may train before it is judged for the first time."""

    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on at each judgement."""


class SchedulerSpec(SpecModel):
    """Who stops trials after early epochs."""

    asha: AshaSpec
    """Asynchronous successive halving."""


class SearchSpec(SpecModel):
    """A search over the spec. Each trial is a combination; the axes of the matrix, seeds apart, are dimensions too."""

    algorithm: Literal["grid", "random", "optuna"]
    """`grid`: all combinations of all values; `random`: drawn independently; `optuna`: each trial is chosen knowing the
    results of those before it (tree-structured Parzen estimator, with several objectives too)."""

    space: dict[str, Dimension] = Field(default_factory=dict)
    """Dotted path → its values. Paths are those of `--set` and of the matrix, options of strategies by the strategy's
    name: `stages.student.strategies.token_merging.r`."""

    trials: PositiveInt | None = None
    """Trials of `random` and `optuna`, those included that are stopped or cannot be planned. A larger number goes on
    with the same search."""

    seed: NonNegativeInt = 0
    """Seed of the proposals; the seed of training is the experiment's."""

    objectives: Annotated[list[Objective], Field(min_length=1)] = Field(
        default_factory=lambda: [Objective(metric="top1")]
    )
    """What `optuna` makes better, and what `stop_dominated` compares; of several there is a front instead of a best."""

    scheduler: SchedulerSpec | None = None
    """Who stops trials after early epochs; `null` = nobody."""

    stop_dominated: bool = False
    """Give up the further seeds of a trial that another one dominates by more than twice the spread over seeds. Needs
    an axis of seeds; seeds then run one after another."""

    concurrent: PositiveInt = 2
    """Trials of `optuna` under way at a time. Trial n is proposed from the results of trials 0 … n − `concurrent`, no
    matter which finished first, so that equal seeds propose equal trials."""

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSpec:
        if self.algorithm == "grid":
            if self.trials is not None:
                raise ValueError("a grid has as many trials as combinations; remove `trials`, or choose `random`")
            ranges = [path for path, dimension in self.space.items() if dimension.choices() is None]
            if ranges:
                raise ValueError(
                    f"a grid needs `values` or `int` for {listed(ranges)}; from a range of numbers `random` and "
                    "`optuna` draw"
                )
        elif self.trials is None:
            raise ValueError(f"`trials` is missing: `{self.algorithm}` needs to know how many to propose")
        names = [objective.metric for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("an objective occurs twice; remove one of them")
        if len(names) > 1 and self.algorithm != "optuna" and not self.stop_dominated:
            raise ValueError(
                f"`{self.algorithm}` proposes without looking at results, so several `objectives` change nothing; "
                "choose `optuna`, set `stop_dominated`, or leave them out (the comparison shows every metric)"
            )
        if self.scheduler is not None and "top1" not in names:
            raise ValueError("`scheduler.asha` judges by top-1, which is no objective here; add `{metric: top1}`")
        return self

    def names(self, taken: list[str]) -> dict[str, str]:
        """Short name → path: as much of a path's end as tells it from the others and from the names taken."""
        paths = {path: path.split(".") for path in self.space}
        named: dict[str, str] = {}
        for path, parts in paths.items():
            ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
            others = [other for other in paths if other != path]
            free = (e for e in ends if e not in taken and not any(("." + o).endswith("." + e) for o in others))
            named[next(free, path)] = path
        return named
