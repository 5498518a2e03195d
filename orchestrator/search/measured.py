"""What is measured of a combination, by objective."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Combination, Plan
from orchestrator.reporting.results import batch_size, read_results, rows_by_column
from specs.search import Objective


class Missing(ValueError):
    """An objective could not be measured."""


class Measured:
    """Reads each measurement once.

    Args:
        store: where measurements are committed.
        objectives: which metrics count.
    """

    def __init__(self, store: ArtifactStore, objectives: Sequence[Objective]) -> None:
        self._store, self._objectives = store, objectives
        self._known: dict[tuple[str, ...], dict[str, float]] = {}

    def of(self, plan: Plan, combination: Combination) -> dict[str, float] | None:
        """Objective → value; `None` while the combination is not measured.

        Raises:
            Missing: if the measurement lacks an objective; says why.
            StoreError: if it is damaged.
        """
        found = self._known.get(combination.stages)
        if found is None and self._store.committed(f"stages/{combination.measured_by}"):
            found = self._known[combination.stages] = self._read(plan, combination)
        return found

    def _read(self, plan: Plan, combination: Combination) -> dict[str, float]:
        alone = plan.model_copy(
            update={"stages": {d: plan.stages[d] for d in combination.stages}, "combinations": (combination,)}
        )
        (rows,) = rows_by_column(alone, read_results(alone, self._store)).values()
        values = {}
        for objective in self._objectives:
            taken = [r for r in rows.values() if r.name == objective.metric and r.value is not None]
            largest = max(taken, key=lambda r: batch_size(r) or 0, default=None)
            if largest is None or largest.value is None:
                reason = next((r.reason for r in rows.values() if r.name == objective.metric and r.reason), None)
                raise Missing(f"the objective {objective.metric} could not be taken: {reason or 'it was not measured'}")
            values[objective.metric] = largest.value
        return values
