"""The matrix: which combinations of strategies, models, hyper-parameters and seeds are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeInt, model_validator

from specs.base import SpecModel
from specs.strategy import AnyStrategy

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]
"""Name of one value of an axis: letters, digits and `_ . + -`."""


class Axis(SpecModel):
    """One axis: exactly one of `strategies`, `set`, `values` (with `path`) or `seeds`."""

    stage: str | None = None
    """Stage that receives the `strategies` of this axis; `null` = the last stage."""

    strategies: dict[Label, list[AnyStrategy]] | None = None
    """Label → strategies appended to the stage's own. `none: []` is the usual first value."""

    set: dict[Label, dict[str, JsonValue]] | None = None
    """Label → assignments, for example `{small: {student.model: vit_small_patch16_224}}`."""

    path: str | None = None
    """Dotted path that `values` are assigned to, for example `stages.train.training.optimizer.lr`."""

    values: list[JsonValue] | None = None
    """Values for `path`."""

    seeds: list[NonNegativeInt] | None = None
    """Seeds: each combination is repeated once a seed, and the comparison shows mean ± spread."""

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        kinds = [k for k in ("strategies", "set", "values", "seeds") if getattr(self, k) is not None]
        if len(kinds) != 1:
            found = ", ".join(f"`{k}`" for k in kinds) or "none"
            raise ValueError(f"an axis needs exactly one of `strategies`, `set`, `values`, `seeds`; found {found}")
        if (self.values is None) != (self.path is None):
            raise ValueError("`path` and `values` go together")
        if self.stage is not None and self.strategies is None:
            raise ValueError("`stage` goes with `strategies`; with `path` or `set`, put the stage into the path")
        if not getattr(self, kinds[0]):
            raise ValueError(f"`{kinds[0]}` is empty; an axis needs at least one value, or remove the axis")
        return self


class MatrixSpec(SpecModel):
    """The product of all axes, less `exclude`, plus `include`. Without axes: one combination."""

    axes: dict[Label, Axis] = Field(default_factory=dict)
    """Axis name → axis. A combination is named by its labels, for example `merging=r2,distill=soft`."""

    exclude: list[dict[str, JsonValue]] = Field(default_factory=list)
    """Axis → label; combinations that match all of an entry are left out."""

    include: list[dict[str, JsonValue]] = Field(default_factory=list)
    """Axis → label for every axis except seed axes; added even if `exclude` matches them."""

    on_conflict: Literal["fail", "drop"] = "fail"
    """What happens with combinations whose strategies conflict: the plan fails, or they are dropped and listed."""

    @model_validator(mode="after")
    def _seeds_once(self) -> MatrixSpec:
        seeded = [f"`{name}`" for name, axis in self.axes.items() if axis.seeds is not None]
        if len(seeded) > 1:
            raise ValueError(
                f"{' and '.join(seeded)} are axes of seeds; an experiment has one seed, so keep one of them"
            )
        return self
