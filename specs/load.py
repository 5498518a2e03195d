"""A spec file to a validated experiment, or to everything that is wrong with it.

    YAML (+ `extends`) → merged data → `--set` → `~`, `${VARIABLE}` → validation → Experiment

Every step keeps track of where things are written, so that each problem names its file and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specs.assign import NoSuchPath, assign, resolve
from specs.experiment import Experiment
from specs.extends import read_merged
from specs.problems import Locate, Location, Problem, SpecPath, SpecProblems
from specs.references import assignment_problems, label_problems, stage_problems
from specs.schema import json_schema
from specs.searching import search_problems, space_problems
from specs.strategy import Resolver
from specs.validation import parse
from specs.yaml_source import Node, find, parse_value, plain

__all__ = ["Location", "Problem", "SpecDocument", "SpecProblems", "json_schema", "load", "validate"]


@dataclass(frozen=True)
class SpecDocument:
    """A valid spec and where its parts are written."""

    experiment: Experiment
    """The spec, typed; `~` and `${VARIABLE}` are filled in."""

    data: dict[str, Any]
    """The spec as plain data, after `extends` and `--set`."""

    path: Path
    """The file."""

    places: Locate
    """See `locate`."""

    def locate(self, path: SpecPath) -> Location:
        """Where the value at a path is written, or its nearest ancestor that is."""
        return self.places(path)


def load(path: Path, assignments: Sequence[str] = (), *, resolver: Resolver) -> SpecDocument:
    """Read, merge, override and validate a spec.

    Args:
        path: the spec file.
        assignments: `PATH=VALUE` each, as given to `--set`; VALUE is YAML.
        resolver: gives the options type of a strategy by name (`strategies.registry.resolver`).

    Raises:
        SpecProblems: with every problem found, each located.
    """
    problems: list[Problem] = []
    tree = read_merged(path, problems)
    if tree is None:
        raise SpecProblems(problems)
    data: dict[str, Any] = plain(tree)  # type: ignore[assignment]  # the top is a mapping
    overrides: list[tuple[SpecPath, Location]] = []
    for text in assignments:
        data = _override(data, text, overrides, problems)
    locate = _locator(tree, overrides)
    try:
        experiment = validate(data, resolver, locate)
    except SpecProblems as error:
        problems += error.problems
    if problems:
        raise SpecProblems(sorted(problems, key=lambda problem: (problem.file != str(path), problem.line or 0)))
    return SpecDocument(experiment, data, path, locate)


def validate(data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> Experiment:
    """Validate plain data as a spec: its fields, the references between its parts, and the assignments of its matrix.

    Raises:
        SpecProblems: with every problem found, located by `locate`.
    """
    experiment, problems = parse(data, resolver, locate)
    stages = list(stage_problems(data, locate))
    if stages:  # the model's own check of the same, which stops at the first
        problems = [problem for problem in problems if problem.path]
    problems += stages
    problems += label_problems(data, locate)
    problems += assignment_problems(data, resolver, locate)
    problems += space_problems(data, resolver, locate)
    problems += search_problems(experiment, locate) if experiment is not None else ()
    if problems or experiment is None:
        raise SpecProblems(problems)
    return experiment


def _override(
    data: dict[str, Any], text: str, overrides: list[tuple[SpecPath, Location]], problems: list[Problem]
) -> dict[str, Any]:
    """The data after one `--set`; what is wrong with it is appended to `problems`."""
    place = f"--set {text}"
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        way_out = "Write `--set PATH=VALUE`, for example `--set stages.0.training.epochs=3`."
        problems.append(Problem(place, None, "", "is no assignment", None, way_out))
        return data
    path = path.strip()
    node = parse_value(value, place, problems, lines=False)
    if node is None:
        return data
    try:
        target = resolve(data, path)
        changed = assign(data, path, plain(node))
    except NoSuchPath as error:
        problems.append(Problem(place, None, path, str(error.args[0]), error.nearest))
        return data
    overrides.append((target, Location(place)))
    return changed


def _locator(tree: Node, overrides: Sequence[tuple[SpecPath, Location]]) -> Locate:
    """Places of the merged spec: the last `--set` at or above a path, else the file."""

    def locate(path: SpecPath) -> Location:
        for target, place in reversed(overrides):
            if path[: len(target)] == target:
                return place
        found = find(tree, path)
        # A mapping that only `--set` wrote is in no file.
        below = next((place for target, place in overrides if path and target[: len(path)] == path), None)
        return below if below is not None and found == find(tree, path[:-1]) else found

    return locate
