"""The experiments whose results are to stay: from their specs, or from the plans that runs left in the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.storage import ArtifactStore
from orchestrator.errors import UsageError
from orchestrator.keeping.reach import Roots
from orchestrator.planning.plan import Plan
from orchestrator.reporting.find import experiments, find_plan, plans_of
from orchestrator.reporting.mark import RecordMark
from orchestrator.storage import open_store
from specs.experiment import StorageSpec

EMPTY = "Nothing was ever kept here. If there should be something, name the store's place with `--store`."


def store_of(specs: Sequence[str], place: str | None) -> ArtifactStore:
    """The store that these experiments share.

    Args:
        specs: spec files, or names of experiments in the store.
        place: the store; `None` = the specs', or without a spec file `slimvit-store` in the current folder.

    Raises:
        UsageError: if specs name different stores.
    """
    if place is not None:
        return open_store(place)
    files = [spec for spec in specs if Path(spec).suffix in (".yaml", ".yml") or Path(spec).is_file()]
    found = {store.location: store for store in (find_plan(spec).store for spec in files)}
    if len(found) > 1:
        raise UsageError(f"these specs have different stores ({', '.join(sorted(found))}); name one with `--store`")
    return next(iter(found.values())) if found else open_store(StorageSpec())


def roots_of(specs: Sequence[str], store: ArtifactStore, *, history: bool = False) -> Roots:
    """What these experiments reach; of none, what all experiments in the store do.

    Args:
        specs: spec files, or names of experiments in the store.
        store: where their plans are.
        history: earlier plans of an experiment count too, not only the newest.
    """
    plans: dict[str, tuple[Plan, ...]] = {}
    records: set[str] = set()
    for spec in specs or experiments(store):
        found = find_plan(spec, store.location)
        name = found.plan.experiment
        # A spec that has changed since it was run: its results so far still count as the experiment's.
        kept = plans_of(name, store) if name in experiments(store) else []
        counted = [*(kept if history else kept[-1:]), found]
        plans[name] = (*plans.get(name, ()), *(each.plan for each in counted))
        records |= {RecordMark(each.plan, each.experiment, store).name for each in counted}
    return Roots(plans, frozenset(records))
