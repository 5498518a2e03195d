"""A search as a matrix: its dimensions become axes, its trials cells; nothing else of planning knows of searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pydantic import JsonValue

from orchestrator.planning.digest import digest_of
from orchestrator.planning.environment import package_version
from orchestrator.planning.expand import Cell, cells
from orchestrator.search.ledger import Ledger, Values, Verdict
from specs.experiment import Experiment
from specs.labels import label, labels
from specs.load import SpecDocument
from specs.matrix import Axis
from specs.search import Dimension

PROPOSING_PACKAGES = ("ray", "optuna")
NOT_IN_DIGEST = {"name", "description", "resources", "storage", "tracking"}
"""Parts of a spec that change nothing about which trials are good."""


@dataclass(frozen=True)
class Trial:
    """One proposal."""

    number: int
    values: Values


@dataclass(frozen=True)
class Searched:
    """A search as far as it has come."""

    document: SpecDocument
    """The spec; its matrix has an axis for each dimension, with the values proposed so far."""
    trials: tuple[Trial, ...]
    verdicts: Mapping[int, Verdict]

    def cells(self) -> Iterator[Cell]:
        """The cells of all trials, each once, seeds innermost."""
        yield from (cell for cell, _ in self._numbered())

    def names(self) -> dict[int, str]:
        """Number of each trial → name of its combination."""
        named: dict[int, str] = {}
        for cell, numbers in self._numbered():
            named |= dict.fromkeys(numbers, cell.name)
        return dict(sorted(named.items()))

    def _numbered(self) -> Iterator[tuple[Cell, list[int]]]:
        axes = self.document.experiment.matrix.axes
        known = {name: labels(axis) for name, axis in axes.items()}
        seeded = [name for name, axis in axes.items() if axis.seeds is not None]
        alike: dict[tuple[str, ...], list[int]] = {}
        for trial in self.trials:
            alike.setdefault(tuple(label(trial.values[name]) for name in axes if name not in seeded), []).append(
                trial.number
            )
        for chosen, numbers in alike.items():
            named = dict(zip((name for name in axes if name not in seeded), chosen, strict=True))
            for positions in product(*(range(len(known[name])) for name in seeded)):
                seeds = dict(zip(seeded, positions, strict=True))
                choice = tuple(seeds[n] if n in seeds else known[n].index(named[n]) for n in axes)
                yield Cell(choice, named), numbers


def dimensions(experiment: Experiment) -> dict[str, Dimension]:
    """Name → dimension: the axes of the matrix (their labels; seeds apart), then the paths of the space."""
    search, axes = experiment.search, experiment.matrix.axes
    assert search is not None, "only a search has dimensions"
    found = {name: Dimension(values=list(labels(a))) for name, a in axes.items() if a.seeds is None}
    return found | {name: search.space[path] for name, path in search.names(list(axes)).items()}


def search_digest(document: SpecDocument) -> str:
    """Name of the search: what decides which trials are proposed, except for how many."""
    experiment = document.experiment
    spec: dict[str, Any] = experiment.model_dump(mode="json", exclude=NOT_IN_DIGEST)
    spec["search"].pop("trials")
    return digest_of({"spec": spec, "versions": {name: package_version(name) for name in PROPOSING_PACKAGES}})


def searched(document: SpecDocument, ledger: Ledger) -> Searched:
    """The search as the ledger knows it; a grid has all of its trials from the start."""
    experiment = document.experiment
    search = experiment.search
    assert search is not None, "the spec has a search"
    named = dimensions(experiment)
    if search.algorithm == "grid":
        trials = tuple(Trial(i, values) for i, values in enumerate(_grid(experiment, named)))
    else:
        known = ledger.trials()
        assert search.trials is not None, "the spec says how many"
        trials = tuple(Trial(number, values) for number, values in known.items() if number < search.trials)
    return Searched(as_matrix(document, trials), trials, ledger.verdicts())


def as_matrix(document: SpecDocument, trials: Sequence[Trial]) -> SpecDocument:
    """The spec with an axis for each path of the space, whose values are those of the trials; before there are any,
    the ends of the ranges."""
    experiment = document.experiment
    assert experiment.search is not None, "the spec has a search"
    added: dict[str, Axis] = {}
    for name, path in experiment.search.names(list(experiment.matrix.axes)).items():
        found: dict[str, JsonValue] = {label(trial.values[name]): trial.values[name] for trial in trials}
        values = list(found.values()) or experiment.search.space[path].extremes()
        added[name] = Axis(path=path, values=values)
    matrix = experiment.matrix.model_copy(update={"axes": {**experiment.matrix.axes, **added}})
    return replace(document, experiment=experiment.model_copy(update={"matrix": matrix}))


def _grid(experiment: Experiment, named: Mapping[str, Dimension]) -> Iterator[Values]:
    """All combinations of all values, less those that the matrix excludes."""
    axes = {name: a for name, a in experiment.matrix.axes.items() if a.seeds is None}
    for name, dimension in named.items():
        if name not in axes:
            assert experiment.search is not None
            path = experiment.search.names(list(experiment.matrix.axes))[name]
            axes[name] = Axis(path=path, values=dimension.choices())
    matrix = experiment.matrix.model_copy(update={"axes": axes})
    for cell in cells(matrix):
        values: Values = {}
        for (name, axis), position in zip(axes.items(), cell.choice, strict=True):
            values[name] = labels(axis)[position] if name in experiment.matrix.axes else (axis.values or [])[position]
        yield values


def shown(dimension: Dimension) -> str:
    """A dimension for people: `0.0001 … 0.01 (log)`."""
    if dimension.values is not None:
        return ", ".join(label(value) for value in dimension.values)
    low, high = (label(value) for value in dimension.extremes())
    return f"{low} … {high}" + (" (log)" if dimension.loguniform else " (whole)" if dimension.int else "")
