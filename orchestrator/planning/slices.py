"""The parts of a spec that axes change, each validated once for every way in which axes change it.

A matrix of 10,000 cells rarely has 10,000 different stages. An axis touches one or two slices of the spec (a stage,
the student, the data, …), so a slice is built once for each choice on the axes that touch it, not once a cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import PlanError
from specs.address import is_remote
from specs.assign import NoSuchPath, assign, resolve, value_at
from specs.data import DataSpec, ImageFolder, Torchvision
from specs.expand import expand, path_fields
from specs.experiment import Experiment, StageSpec
from specs.labels import labels
from specs.load import SpecDocument
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec, TeacherSpec
from specs.problems import dotted
from specs.strategy import RESOLVER_KEY
from strategies.registry import resolver

Key = str | int
"""A slice: the name of a top-level field, or the position of a stage."""
Choice = tuple[int, ...]

_TYPES: dict[str, TypeAdapter[Any]] = {
    "student": TypeAdapter(ModelSpec),
    "teacher": TypeAdapter(TeacherSpec | None),
    "data": TypeAdapter(DataSpec),
    "seed": TypeAdapter(int),
    "measurement": TypeAdapter(MeasurementSpec),
}
_STAGE: TypeAdapter[StageSpec] = TypeAdapter(StageSpec)

Assignments = list[tuple[str, Any]]
"""Dotted paths with their values; the path `+` appends to the strategies of a stage."""
APPEND = "+"


class Incompatible(ValueError):
    """Values of several axes that do not fit one another."""


class Slices:
    """Slices of one spec, by the choices on the axes that touch them.

    Raises:
        PlanError: if an axis assigns to a place that combinations cannot differ in.
    """

    def __init__(self, document: SpecDocument) -> None:
        self._data = document.data
        self._experiment = document.experiment
        self._changes = self._sorted_by_slice(document)
        self._built: dict[tuple[Key, Choice], Any] = {}

    def axes(self, key: Key) -> tuple[int, ...]:
        """Positions of the axes that touch a slice."""
        return tuple(self._changes.get(key, {}))

    def get(self, key: Key, choice: Choice) -> Any:
        """The slice as a cell's choice makes it: a `StageSpec` for a position, else the field's own type.

        Raises:
            Incompatible: if the values that the choice puts together do not fit.
        """
        changes = self._changes.get(key, {})
        picked = tuple(choice[axis] for axis in changes)
        found = self._built.get((key, picked))
        if found is None:
            if changes:
                found = self._build(key, [changes[a][choice[a]] for a in changes])
            else:
                found = self._experiment.stages[key] if isinstance(key, int) else getattr(self._experiment, key)
            found = self._built[key, picked] = _with_absolute_root(found)
        return found

    def _build(self, key: Key, changes: list[Assignments]) -> Any:
        """Assign in the order of the axes, then append strategies, then validate."""
        data: Mapping[str, Any] = self._data
        path = ("stages", key) if isinstance(key, int) else (key,)
        try:
            together = [change for assignments in changes for change in assignments]
            for target, value in together:
                if target != APPEND:
                    data = assign(data, target, value)
            for added in (value for target, value in together if target == APPEND):
                own = list(value_at(data, (*path, "strategies")) or [])
                data = assign(data, dotted((*path, "strategies")), own + added)
            for field in path_fields(data):
                if field[: len(path)] == path:
                    data = assign(data, dotted(field), expand(str(value_at(data, field))))
            adapter: TypeAdapter[Any] = _STAGE if isinstance(key, int) else _TYPES[key]
            return adapter.validate_json(json.dumps(value_at(data, path)), context={RESOLVER_KEY: resolver})
        except ValidationError as error:
            problems = "; ".join(f"`{dotted((*path, *e['loc']))}`: {e['msg']}" for e in error.errors())
            raise Incompatible(f"{problems}. Way out: exclude this combination, or change one of its axes.") from error
        except NoSuchPath as error:
            raise Incompatible(f"{error}. Way out: exclude this combination, or change one of its axes.") from error

    def _sorted_by_slice(self, document: SpecDocument) -> dict[Key, dict[int, list[Assignments]]]:
        """Slice → axis → for each value of the axis, what it assigns."""
        changes: dict[Key, dict[int, list[Assignments]]] = {}
        problems: list[str] = []
        for position, (name, axis) in enumerate(self._experiment.matrix.axes.items()):
            where = f"{document.locate(('matrix', 'axes', name)).file}: matrix.axes.{name}"
            for i, assignments in enumerate(_assignments(axis, self._data, name, self._experiment)):
                for path, value in assignments:
                    try:
                        key = _slice_of(self._data, path) if path != APPEND else _stage(self._experiment, axis.stage)
                    except ValueError as error:
                        problems.append(f"{where}: {error}")
                        continue
                    values = changes.setdefault(key, {}).setdefault(position, [[] for _ in labels(axis)])
                    values[i].append((path, value))
        if problems:
            raise PlanError("the matrix cannot be expanded:\n" + "\n".join(f"  - {p}" for p in dict.fromkeys(problems)))
        return changes


def _with_absolute_root(part: Any) -> Any:
    """Images are read by workers, which run in folders of their own."""
    if not isinstance(part, ImageFolder | Torchvision) or is_remote(part.root):
        return part
    return part.model_copy(update={"root": str(Path(part.root).expanduser().absolute())})


def _assignments(axis: Any, data: Mapping[str, Any], name: str, experiment: Experiment) -> list[Assignments]:
    """What each value of an axis assigns, in the order of its labels."""
    if axis.strategies is not None:
        written = value_at(data, ("matrix", "axes", name, "strategies"))
        return [[(APPEND, entries)] for entries in written.values()]
    if axis.set is not None:
        return [list(assignments.items()) for assignments in axis.set.values()]
    if axis.seeds is not None:
        return [[("seed", seed)] for seed in axis.seeds]
    return [[(axis.path, value)] for value in axis.values]


def _stage(experiment: Experiment, name: str | None) -> int:
    return len(experiment.stages) - 1 if name is None else [s.name for s in experiment.stages].index(name)


def _slice_of(data: Mapping[str, Any], path: str) -> Key:
    """The slice that a dotted path lies in."""
    target = resolve(data, path)
    if target[0] != "stages":
        if target[0] not in _TYPES:
            raise ValueError(f"`{path}` is the same for all combinations. Way out: one of {', '.join(_TYPES)}, stages.")
        return str(target[0])
    if len(target) < 3 or target[2] == "name":
        raise ValueError(f"`{path}` would replace a whole stage or its name. Way out: assign to a field of the stage.")
    assert isinstance(target[1], int)
    return target[1]
