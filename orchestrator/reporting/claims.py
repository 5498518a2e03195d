"""Claims of efficiency, checked against what was measured.

A claim is a list of conditions, `params<15M, top1>=83.2, throughput_ratio>=2.4`. The first is the budget: of the
combinations that keep to it, the most accurate one must satisfy all others. A claim may say which baseline its ratios
and which images its accuracy speak of (`baseline==vit_tiny_patch16_224, data==imagenet`); measured against or on
something else, these parts cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UsageError
from orchestrator.planning.plan import MeasureStage, Plan
from orchestrator.reporting.comparison import ClaimPart, ClaimResult, Column, Comparison, Row
from orchestrator.reporting.front import find_column
from orchestrator.reporting.query import Constraint, parse
from orchestrator.reporting.uncertainty import intervals, usable
from specs.data import DataSpec, ImageFolder

TYPICAL_CLAIM = (
    "params<15M, top1>=83.2, throughput_ratio>=2.4, peak_memory_ratio<=0.63, "
    "baseline==vit_tiny_patch16_224, data==imagenet"
)
"""A claim as this field makes it: 83.2 % top-1 with < 15 M parameters, 2.4× faster and 37 % less memory than ViT-Tiny.
No single paper's: it is here to be computed, not to be quoted."""

_CONTEXT = re.compile(r"\s*(baseline|data)\s*==\s*([A-Za-z0-9_.-]+)\s*")
_IMAGENET = "imagenet"


class Claim(NamedTuple):
    """A claim, read."""

    text: str
    budget: Constraint
    parts: tuple[Constraint, ...]
    baseline: str | None = None
    """Network that its ratios are over; `None` = whatever the experiment's is."""
    data: str | None = None
    """Images that its accuracy is on; `None` = the experiment's."""


class Setting(NamedTuple):
    """What an experiment's ratios are over and its accuracy is on."""

    baseline: str
    data: str


def read_claim(text: str) -> Claim:
    """Read a claim.

    Raises:
        UsageError: if a part is no condition, or fewer than two are.
    """
    context: dict[str, str] = {}
    conditions = []
    for part in text.split(","):
        found = _CONTEXT.fullmatch(part)
        if found:
            context[found[1]] = found[2]
        else:
            conditions.append(part)
    constraints = parse(",".join(conditions), "--claim")
    if len(constraints) < 2:
        raise UsageError(
            f"`--claim`: `{text}` needs a budget and at least one condition after it, for example "
            "`params<15M, top1>=83.2`."
        )
    return Claim(text, constraints[0], constraints[1:], context.get("baseline"), context.get("data"))


def setting_of(plan: Plan) -> Setting:
    """What the measurements of a plan are over and on; several where the matrix varies them."""
    stages = [stage for stage in plan.walk() if isinstance(stage, MeasureStage)]
    baselines = {s.measurement.baseline.model if s.measurement.baseline else "none" for s in stages}
    return Setting(
        " and ".join(sorted(baselines)), " and ".join(sorted({_name(s.data, s.num_classes) for s in stages}))
    )


def check(claim: Claim, comparison: Comparison, setting: Setting) -> ClaimResult:
    """Say which parts of a claim hold for the most accurate combination under its budget.

    Raises:
        UsageError: if it speaks of a metric that does not exist.
    """
    columns = [_column(comparison, c.name) for c in (claim.budget, *claim.parts)]
    best, why_none = _best(comparison, claim.budget, columns[0])
    if best is None:
        parts = [ClaimPart(text=str(c), value=None, holds=None, reason=why_none) for c in claim.parts]
    else:
        parts = [
            _part(comparison, best, c, column, claim, setting)
            for c, column in zip(claim.parts, columns[1:], strict=True)
        ]
    return ClaimResult(
        text=claim.text, budget=str(claim.budget), combination=best.name if best else None, parts=tuple(parts)
    )


def _column(comparison: Comparison, name: str) -> Column | None:
    try:
        return find_column(comparison, name)
    except UsageError as error:
        raise UsageError(f"`--claim`: {error}") from None


def _best(comparison: Comparison, budget: Constraint, column: Column | None) -> tuple[Row | None, str]:
    """The most accurate combination under the budget, or why there is none."""
    quality = comparison.find("top1")
    if column is None or quality is None:
        return None, f"{budget.name if column is None else 'top1'} is not measured"
    known = [r for r in comparison.rows if usable(r.cells[column.key])]
    within = [r for r in known if budget.holds(r.cells[column.key].value or 0.0)]
    if not within:
        nearest = min(known, key=lambda r: budget.shortfall(r.cells[column.key].value or 0.0), default=None)
        closest = f"; the nearest, `{nearest.name}`, has {nearest.cells[column.key].value:.6g}" if nearest else ""
        return None, f"no combination has {budget}{closest}"
    rated = [r for r in within if usable(r.cells[quality.key])]
    if not rated:
        return None, f"no combination with {budget} has a usable top-1"
    if len({r.cells[quality.key].group for r in rated}) > 1:
        return None, f"the top-1 of the combinations with {budget} was taken under different conditions"
    return max(rated, key=lambda r: r.cells[quality.key].value or 0.0), ""


def _part(
    comparison: Comparison, r: Row, constraint: Constraint, column: Column | None, claim: Claim, setting: Setting
) -> ClaimPart:
    cell = r.cells[column.key] if column else None
    if column is None or cell is None or cell.value is None:
        missing = (cell.reason if cell else None) or "not measured"
        return ClaimPart(text=str(constraint), value=None, holds=None, reason=missing)
    doubts = [f"unreliable: {cell.unreliable}"] if cell.unreliable else []
    doubts += _elsewhere(column, claim, setting)
    for low, high in _ranges(comparison, r, column):
        if constraint.holds(low) != constraint.holds(high):
            doubts.append(f"the bound lies in its 95 % interval, {low:.4g} to {high:.4g}")
    if doubts:
        return ClaimPart(text=str(constraint), value=cell.value, holds=None, reason="; ".join(dict.fromkeys(doubts)))
    told = [f"over {setting.baseline}"] if _is_ratio(column) else [f"on {setting.data}"] if column.unit == "%" else []
    told += ["one seed"] if cell.num_seeds == 1 else []
    return ClaimPart(text=str(constraint), value=cell.value, holds=constraint.holds(cell.value), reason="; ".join(told))


def _elsewhere(column: Column, claim: Claim, setting: Setting) -> Iterable[str]:
    """What the claim speaks of and the experiment does not."""
    if _is_ratio(column) and claim.baseline not in (None, setting.baseline):
        yield f"the baseline is {setting.baseline}, not {claim.baseline}"
    if column.unit == "%" and claim.data is not None and claim.data.lower() != setting.data.lower():
        yield f"the images are {setting.data}, not {claim.data}"


def _ranges(comparison: Comparison, r: Row, column: Column) -> Iterable[tuple[float, float]]:
    """Intervals of the value: of its mean over seeds, and of the measurement itself."""
    cell = r.cells[column.key]
    alike: Sequence[Row] = [
        other
        for other in comparison.rows
        if usable(other.cells[column.key]) and other.cells[column.key].group == cell.group
    ]
    names = [other.name for other in alike]
    if r.name in names:
        yield intervals(column, [other.cells[column.key] for other in alike])[names.index(r.name)]
    if cell.interval:
        yield cell.interval


def _is_ratio(column: Column) -> bool:
    return column.metric.endswith("_ratio")


def _name(data: DataSpec, num_classes: int) -> str:
    """Name of the images: a folder with 1,000 classes, used whole, is taken for ImageNet-1k."""
    if isinstance(data, ImageFolder):
        whole = data.limit_val is None and data.limit_train is None
        return _IMAGENET if num_classes == 1000 and whole else f"{Path(data.root).name} ({num_classes} classes)"
    return data.name
