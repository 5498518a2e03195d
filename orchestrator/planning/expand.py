"""The matrix as a list of cells: the product of all axes, less `exclude`, plus `include`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from pydantic import JsonValue

from specs.labels import label, labels
from specs.matrix import MatrixSpec

DEFAULT_NAME = "default"
"""Name of the only combination of a matrix without axes (or with seed axes only)."""


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix: a value of every axis, seed axes included."""

    choice: tuple[int, ...]
    """For each axis, in the order of the spec, the position of the chosen value."""
    labels: dict[str, str]
    """Axis → label, without seed axes."""

    @property
    def name(self) -> str:
        """Labels without seeds: `merging=r2,distill=soft`."""
        return ",".join(f"{axis}={text}" for axis, text in self.labels.items()) or DEFAULT_NAME


def cells(matrix: MatrixSpec) -> Iterator[Cell]:
    """All cells, seeds innermost, so that repetitions of a combination stand together; included ones last.

    `exclude` and `include` name axes and labels that exist; validation of the spec has seen to that.
    """
    axes = list(matrix.axes)
    known = {axis: labels(spec) for axis, spec in matrix.axes.items()}
    seeded = [axis for axis, spec in matrix.axes.items() if spec.seeds is not None]
    order = [axis for axis in axes if axis not in seeded] + seeded
    seen: set[tuple[int, ...]] = set()

    def cell(values: Mapping[str, int]) -> Cell:
        named = {axis: known[axis][values[axis]] for axis in axes if axis not in seeded}
        return Cell(tuple(values[axis] for axis in axes), named)

    for positions in product(*(range(len(known[axis])) for axis in order)):
        values = dict(zip(order, positions, strict=True))
        if matrix.exclude and excluded(matrix, {a: known[a][values[a]] for a in axes}):
            continue
        seen.add(tuple(values[axis] for axis in axes))
        yield cell(values)
    for entry in map(_wanted, matrix.include):
        fixed = {axis: known[axis].index(text) for axis, text in entry.items()}
        for positions in product(*(range(len(known[axis])) for axis in seeded)):
            added = cell(fixed | dict(zip(seeded, positions, strict=True)))
            if added.choice not in seen:
                seen.add(added.choice)
                yield added


def excluded(matrix: MatrixSpec, named: Mapping[str, str]) -> bool:
    """Whether the matrix excludes a cell with these labels (axis → label)."""
    return any(all(named.get(a) == label(value) for a, value in entry.items()) for entry in matrix.exclude)


def _wanted(entry: Mapping[str, JsonValue]) -> dict[str, str]:
    return {axis: label(value) for axis, value in entry.items()}
