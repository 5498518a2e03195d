"""Who proposes trials: Ray Tune's variant generator, or Optuna through Ray Tune. Loaded only when a trial is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.search.ledger import Values, Verdict
from specs.labels import label
from specs.search import Dimension, SearchSpec


class Searcher(Protocol):
    """Proposes trials by number, in order; what it proposes depends on its seed and on what it was told."""

    def propose(self, trial: int) -> Values:
        """Values of the next trial."""
        ...

    def tell(self, trial: int, verdict: Verdict) -> None:
        """What became of a trial that it proposed."""
        ...


def make_searcher(search: SearchSpec, dimensions: Mapping[str, Dimension]) -> Searcher:
    """A fresh searcher, as its seed makes it.

    Args:
        search: algorithm, seed and objectives.
        dimensions: name → values.
    """
    if search.algorithm == "random":
        return _RandomSearcher(search, dimensions)
    assert search.algorithm == "optuna", "a grid is a matrix, which nobody proposes"
    return _OptunaSearcher(search, dimensions)


class _RandomSearcher:
    """Independent draws; it does not listen."""

    def __init__(self, search: SearchSpec, dimensions: Mapping[str, Dimension]) -> None:
        import numpy

        self._dimensions = dimensions
        self._domains = {"config": _domains(dimensions)}
        self._random = numpy.random.default_rng(search.seed)

    def propose(self, trial: int) -> Values:
        """Values of the next trial."""
        from ray.tune.search.variant_generator import generate_variants

        _, drawn = next(generate_variants(self._domains, random_state=self._random))
        return _used(drawn["config"], self._dimensions)

    def tell(self, trial: int, verdict: Verdict) -> None:
        """Nothing follows from it."""


class _OptunaSearcher:
    """Tree-structured Parzen estimator, for one objective or several."""

    def __init__(self, search: SearchSpec, dimensions: Mapping[str, Dimension]) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        metrics = [objective.metric for objective in search.objectives]
        modes = ["max" if objective.higher else "min" for objective in search.objectives]
        alone = len(metrics) == 1
        self._dimensions = dimensions
        # Optuna learns from unfinished trials only where there is one objective.
        self._judged_by_epoch = metrics == ["top1"]
        self._asked: Any = OptunaSearch(
            OptunaSearch.convert_search_space(_domains(dimensions)),
            metric=metrics[0] if alone else metrics,
            mode=modes[0] if alone else modes,
            seed=search.seed,
        )

    def propose(self, trial: int) -> Values:
        """Values of the next trial."""
        return _used(self._asked.suggest(str(trial)), self._dimensions)

    def tell(self, trial: int, verdict: Verdict) -> None:
        """What became of a trial: values, a pruned trial with its curve so far, or a failure."""
        if self._judged_by_epoch:
            for epoch, top1 in verdict.curve.items():
                self._asked.on_trial_result(str(trial), {"top1": top1, "training_iteration": epoch})
        self._asked.on_trial_complete(
            str(trial),
            dict(verdict.objectives) if verdict.outcome == "finished" else None,
            error=verdict.outcome in ("failed", "impossible"),
        )


def _domains(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """The space in Ray Tune's words; single values go by their labels, because Optuna takes no lists."""
    from ray import tune

    found: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        if dimension.values is not None:
            found[name] = tune.choice([label(value) for value in dimension.values])
        elif dimension.uniform is not None:
            found[name] = tune.uniform(*dimension.uniform)
        elif dimension.loguniform is not None:
            found[name] = tune.loguniform(*dimension.loguniform)
        else:
            assert dimension.int is not None, "a dimension has one kind"
            low, high = dimension.int
            found[name] = tune.randint(low, high + 1)
    return found


def _used(drawn: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> Values:
    """Drawn values as plain data, rounded, in the order of the dimensions."""
    values: Values = {}
    for name, dimension in dimensions.items():
        if dimension.values is not None:
            values[name] = next(value for value in dimension.values if label(value) == drawn[name])
        elif dimension.int is not None:
            values[name] = int(drawn[name])
        else:
            values[name] = dimension.rounded(float(drawn[name]))
    return values
