"""Best under a budget: `macs<=1e9, latency_ms<=5`, ranked by accuracy.

Combinations are ranked only against those that were measured under the same conditions in all columns asked about;
where nothing satisfies, the one that fails most narrowly is named.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.reporting.comparison import Cell, Column, Comparison, Frozen, Row
from orchestrator.reporting.front import find_column
from orchestrator.reporting.uncertainty import draws, usable

_OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_CONSTRAINT = re.compile(
    r"([A-Za-z_][\w.-]*)\s*(<=|>=|==|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([kMG]?)"
)
_SURE = 0.975


class Constraint(NamedTuple):
    """`macs <= 1e9`."""

    name: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.bound:.12g}"

    def holds(self, value: float) -> bool:
        """Whether a value satisfies it."""
        return bool(_OPERATORS[self.operator](value, self.bound))

    def shortfall(self, value: float) -> float:
        """How far a value is from satisfying it, as a share of the bound; 0 if it does."""
        if self.holds(value):
            return 0.0
        return abs(value - self.bound) / (abs(self.bound) or 1.0)


class Hit(Frozen):
    """A combination that satisfies everything."""

    combination: str
    values: dict[str, float]
    """Column key → value, of the column ranked by first."""


class Ranking(Frozen):
    """Combinations measured under the same conditions, best first."""

    conditions: dict[str, str]
    """Column key → letter of its group of conditions, for columns that have several."""
    hits: tuple[Hit, ...]
    lead: str
    """How sure the first place is, in a sentence; empty with a single combination."""


class Miss(Frozen):
    """The combination that comes nearest, and what keeps it out."""

    combination: str
    failed: tuple[str, ...]
    """Each constraint it fails, with its value and by how much."""


class Answer(Frozen):
    """What a query found."""

    where: str
    best: str
    """Key of the column that combinations are ranked by."""
    columns: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    nearest: Miss | None = None
    """Only where nothing satisfies."""
    left_out: dict[str, str]
    """Combination → why it cannot be judged."""


def parse(text: str, option: str = "--where") -> tuple[Constraint, ...]:
    """Constraints separated by commas; bounds may end in k, M or G.

    Raises:
        UsageError: if a part is none.
    """
    constraints = []
    for part in text.split(","):
        found = _CONSTRAINT.fullmatch(part.strip())
        if found is None:
            raise UsageError(
                f"`{option}`: `{part.strip()}` is no condition. Write METRIC OPERATOR NUMBER with one of <= < >= > ==, "
                "several separated by commas, for example `macs<=1.2G, latency_ms<=5`."
            )
        name, comparator, number, factor = found.groups()
        constraints.append(Constraint(name, comparator, float(number) * _FACTORS[factor]))
    return tuple(constraints)


def answer(comparison: Comparison, where: str | None, best: str | None = None) -> Answer:
    """The combinations that satisfy `where`, ranked by `best` (top-1 if it is not said).

    Raises:
        UsageError: if a condition cannot be read, or a metric does not exist, was not taken, or cannot be ranked by.
    """
    constraints = parse(where) if where else ()
    ranked = measured_column(comparison, best or "top1", "--best")
    if ranked.direction == "none":
        raise UsageError(f"`--best {ranked.key}`: neither more nor less of it is better; rank by another metric.")
    columns = [measured_column(comparison, c.name, "--where") for c in constraints]
    asked = list({c.key: c for c in (ranked, *columns)}.values())

    left_out: dict[str, str] = {}
    judged: list[Row] = []
    for r in comparison.rows:
        unusable = [f"{c.key}: {_why(r.cells[c.key])}" for c in asked if not usable(r.cells[c.key])]
        if unusable:
            left_out[r.name] = "; ".join(unusable)
        else:
            judged.append(r)
    satisfying: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    misses: list[tuple[float, Row]] = []
    for r in judged:
        short = [c.shortfall(_value(r, k)) for c, k in zip(constraints, columns, strict=True)]
        if all(c.holds(_value(r, k)) for c, k in zip(constraints, columns, strict=True)):
            satisfying[tuple(r.cells[c.key].group or "" for c in asked)].append(r)
        else:
            misses.append((max(short), r))
    nearest = min(misses, key=lambda miss: miss[0])[1] if misses and not satisfying else None
    return Answer(
        where=", ".join(map(str, constraints)),
        best=ranked.key,
        columns=tuple(c.key for c in asked),
        rankings=tuple(_ranking(rows, ranked, asked) for _, rows in sorted(satisfying.items())),
        nearest=_miss(nearest, constraints, columns) if nearest else None,
        left_out=left_out,
    )


def measured_column(comparison: Comparison, name: str, option: str) -> Column:
    """The column that is meant.

    Raises:
        UsageError: if there is no such metric, or no combination has a value.
    """
    try:
        column = find_column(comparison, name)
    except UsageError as error:
        raise UsageError(f"`{option}`: {error}") from None
    if column is None or all(r.cells[column.key].value is None for r in comparison.rows):
        reasons = {r.cells[column.key].reason for r in comparison.rows} if column else set()
        keys = ", ".join(c.key for c in comparison.columns)
        why = "; ".join(sorted(reason for reason in reasons if reason))
        why = why or (f"it was not taken here; measured are {keys}" if keys else "nothing is measured yet")
        raise UsageError(f"`{option}`: no combination has a value of `{name}`: {why}.")
    return column


def _ranking(rows: Sequence[Row], ranked: Column, asked: Sequence[Column]) -> Ranking:
    sign = -1 if ranked.direction == "higher" else 1
    ordered = sorted(rows, key=lambda r: sign * _value(r, ranked))
    first = ordered[0]
    return Ranking(
        conditions={c.key: first.cells[c.key].group or "" for c in asked if len(c.groups) > 1},
        hits=tuple(Hit(combination=r.name, values={c.key: _value(r, c) for c in asked}) for r in ordered),
        lead=_lead(ordered, ranked) if len(ordered) > 1 else "",
    )


def _lead(ordered: Sequence[Row], column: Column) -> str:
    cells = [r.cells[column.key] for r in ordered]
    (first, second), (a, b) = [r.name for r in ordered[:2]], cells[:2]
    assert a.value is not None
    assert b.value is not None
    lead = f"The lead of `{first}` over `{second}` ({abs(a.value - b.value):.3g} {column.unit}".rstrip() + ")"
    if a.value == b.value:
        return f"`{first}` and `{second}` are equal."
    if any(cell.num_seeds > 1 for cell in cells):
        drawn = draws(column, cells, np.random.default_rng(0))
        sure = float(((drawn[:, 0] > drawn[:, 1]) == (a.value > b.value)).mean())
        within = "is within the spread over seeds" if sure < _SURE else "is beyond the spread over seeds"
        return f"{lead} {within}: it is the better of the two with probability {sure:.2f}."
    if a.interval and b.interval:
        apart = a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]
        return f"{lead} is {'beyond' if apart else 'within'} the 95 % intervals of the two measurements; one seed each."
    return f"{lead} rests on one seed each; whether it is chance cannot be told."


def _miss(r: Row, constraints: Sequence[Constraint], columns: Sequence[Column]) -> Miss:
    failed = []
    for constraint, column in zip(constraints, columns, strict=True):
        value = _value(r, column)
        if not constraint.holds(value):
            failed.append(f"{constraint} (it has {value:.6g}, off by {100 * constraint.shortfall(value):.2g} %)")
    return Miss(combination=r.name, failed=tuple(failed))


def _value(r: Row, column: Column) -> float:
    value = r.cells[column.key].value
    assert value is not None, "only combinations with all values are judged"
    return value


def _why(cell: Cell) -> str:
    return cell.unreliable or cell.reason or "missing"
