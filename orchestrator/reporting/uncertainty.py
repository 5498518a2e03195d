"""How sure a mean over few seeds is: draws of what the mean over endless seeds may be.

Two or three seeds say next to nothing about the spread of one combination, and resampling them says less than that
(a bootstrap of two values knows three means). So the spread of a single run is pooled over all combinations of a
column, as in an analysis of variance: for a column in percent the standard deviation, for every other one (all are
positive) the standard deviation relative to the mean. With it, and the usual prior that favours nothing, a mean is
known up to Student's t (Gelman et al., "Bayesian Data Analysis", 3rd ed., section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.reporting.comparison import Cell, Column
from orchestrator.reporting.pareto import Floats

NUM_DRAWS = 2000


class Pooled(NamedTuple):
    """Spread of one run, common to all combinations of a column."""

    std: float
    """In the column's unit, or as a share of the mean."""
    degrees: int
    """Degrees of freedom: seeds less combinations."""


def usable(cell: Cell | None) -> bool:
    """Whether the cell has a value that may be ranked."""
    return cell is not None and cell.value is not None and cell.unreliable is None


def is_relative(column: Column) -> bool:
    """Whether the column's spread grows with its values."""
    return column.unit != "%"


def pooled(column: Column, cells: Sequence[Cell]) -> Pooled | None:
    """The spread of a single run over all combinations that vary; `None` if none has two seeds that differ.

    A combination whose seeds agree to the last digit (a count) is exact and tells nothing about the others.
    """
    squares, degrees = 0.0, 0
    for cell in cells:
        if cell.std and cell.value:
            scale = cell.value if is_relative(column) else 1.0
            squares += (cell.num_seeds - 1) * (cell.std / scale) ** 2
            degrees += cell.num_seeds - 1
    return Pooled(float(np.sqrt(squares / degrees)), degrees) if degrees else None


def draws(column: Column, cells: Sequence[Cell], rng: np.random.Generator, num_draws: int = NUM_DRAWS) -> Floats:
    """Draws of the true means of cells that were measured alike, shape (`num_draws`, cells).

    All cells must have values. Exact ones do not move, and nothing does where no cell has two seeds that differ.
    """
    means = np.array([cell.value for cell in cells], dtype=np.float64)
    spread = pooled(column, cells)
    if spread is None:
        return np.broadcast_to(means, (num_draws, len(means))).copy()
    moves = np.array([not (cell.num_seeds > 1 and cell.std == 0) for cell in cells])
    error = moves / np.sqrt([max(cell.num_seeds, 1) for cell in cells])
    if is_relative(column):
        error = error * np.abs(means)
    # One unknown spread for all: it is drawn once a draw, then every mean around its own.
    std = spread.std * np.sqrt(spread.degrees / rng.chisquare(spread.degrees, size=(num_draws, 1)))
    drawn: Floats = means + std * error * rng.standard_normal((num_draws, len(means)))
    return drawn


def intervals(column: Column, cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """95 % interval of each mean, of cells that were measured alike; a point where nothing is known of its spread."""
    drawn = draws(column, cells, np.random.default_rng(0), 20 * NUM_DRAWS // max(len(cells), 1) + NUM_DRAWS)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
