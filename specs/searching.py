"""What a search and the rest of its spec say about each other; located, and reported with all other problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from specs.assign import NoSuchPath, resolve, value_at
from specs.experiment import Experiment
from specs.labels import label
from specs.problems import Locate, Problem, SpecPath, dotted, listed, problem_at
from specs.references import assigned_problems
from specs.strategy import Resolver


def space_problems(data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> Iterator[Problem]:
    """Dimensions that specs do not have, and values or ends of ranges that do not fit there.

    Each value is assigned alone and validated, as for axes of the matrix.
    """
    base = {**data, "matrix": {}, "search": None}
    targets: dict[SpecPath, str] = {}
    space = value_at(data, ("search", "space"))
    for path, dimension in space.items() if isinstance(space, Mapping) else ():
        here: SpecPath = ("search", "space", path)
        if not isinstance(path, str):
            continue  # its own problem
        for kind in ("values", "uniform", "loguniform", "int"):
            values = value_at(dimension, (kind,))
            for i, value in enumerate(values if isinstance(values, list) else ()):
                if label(value) in map(label, values[:i]):
                    yield problem_at(locate((*here, kind, i)), (*here, kind, i), "occurs twice", way_out="Remove it.")
                places = {path: (here, (*here, kind, i))}
                problems = list(assigned_problems(base, {path: value}, places, resolver, locate))
                yield from problems
                if any(problem.path == dotted(here) for problem in problems):
                    break
        with suppress(NoSuchPath):
            target = resolve(base, path)
            if target in targets:
                message = f"is the same place as `{targets[target]}`"
                yield problem_at(locate(here), here, message, way_out="Keep one of the two.")
            targets[target] = path


def search_problems(experiment: Experiment, locate: Locate) -> Iterator[Problem]:
    """What a search cannot do with this matrix and these stages."""
    search, axes = experiment.search, experiment.matrix.axes
    if search is None:
        return

    def at(path: SpecPath, message: str, way_out: str) -> Problem:
        return problem_at(locate(path), path, message, way_out=way_out)

    seeded = [name for name, axis in axes.items() if axis.seeds is not None]
    if experiment.matrix.include:
        message = "names whole combinations, which with `search` are proposed"
        yield at(("matrix", "include"), message, "Remove it.")
    if not search.space and len(seeded) == len(axes):
        yield at(("search",), "has nothing to vary", "Give `space` a path, or `matrix.axes` an axis.")
    ranged = [name for name, axis in axes.items() if axis.path is not None and axis.path in search.space]
    for name in ranged:
        message = f"the axis `{name}` of the matrix varies this path, too"
        yield at(("search", "space", str(axes[name].path)), message, "Keep one of the two.")
    if search.stop_dominated and not any(len(axes[name].seeds or []) > 1 for name in seeded):
        message = "needs the spread over seeds, and every trial has one seed"
        yield at(("search", "stop_dominated"), message, "Add an axis, for example `seed: {seeds: [0, 1, 2]}`.")
    if search.scheduler is None:
        return
    here, asha, last = ("search", "scheduler"), search.scheduler.asha, experiment.stages[-1]
    if seeded:
        message = f"stops single trainings, and the axis {listed(seeded)} repeats each trial"
        yield at(here, message, "Search with one seed and repeat the best; remove the axis of seeds or the scheduler.")
    if asha.grace_epochs >= last.training.epochs:
        message = f"leaves nothing to stop: the last stage `{last.name}` trains {last.training.epochs} epochs"
        yield at((*here, "asha", "grace_epochs"), message, "Choose a smaller number, or remove the scheduler.")
    for path in search.space:
        if path.split(".")[-2:] == ["training", "epochs"] and path.split(".")[1] in (
            last.name,
            str(len(experiment.stages) - 1),
        ):
            message = "changes how long the last stage trains, and `scheduler` compares trials at the same epoch of it"
            yield at(("search", "space", path), message, "Remove this dimension, or the scheduler.")
