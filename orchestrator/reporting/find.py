"""An experiment by its spec file, or by the name under which earlier runs left its plan in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError, UsageError
from orchestrator.planning import failed as failed_stages
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Combination, Plan
from orchestrator.storage import open_store
from specs.experiment import Experiment, StorageSpec
from specs.load import SpecDocument, load
from specs.problems import listed, nearest
from specs.strategy import RESOLVER_KEY
from strategies import registry

_SUFFIXES = (".yaml", ".yml")


class Found(NamedTuple):
    """An experiment, ready to be read."""

    plan: Plan
    experiment: Experiment
    store: ArtifactStore


def find_plan(name_or_spec: str, store_root: str | Path | None = None, assignments: Sequence[str] = ()) -> Found:
    """Find an experiment.

    Args:
        name_or_spec: a spec file, or the name of an experiment; of a name the latest run's plan is taken.
        store_root: the artefact store; `None` = the spec's, or for a name `slimvit-store` in the current folder.
        assignments: `PATH=VALUE` each, for a spec file.

    Raises:
        UsageError: if there is no such file or experiment, or assignments go with a name.
        SpecProblems, PlanError: if the spec is wrong.
        StoreError: if the stored plan is damaged.
    """
    path = Path(name_or_spec).expanduser()
    if path.suffix in _SUFFIXES or path.is_file():
        return _from_spec(path, store_root, assignments)
    if assignments:
        raise UsageError(
            f"`--set` changes a spec, but `{name_or_spec}` is the name of a finished experiment. Name the spec file "
            "instead, or leave `--set` out."
        )
    return _from_store(name_or_spec, open_store(store_root or StorageSpec()))


def experiments(store: ArtifactStore) -> list[str]:
    """Names of the experiments that have been run on a store, sorted."""
    return sorted({name.split("/")[1] for name in store.names("plans")})


def require_results(found: Found) -> None:
    """Refuse an experiment of which nothing is finished: a comparison of nothing would look like a result.

    Raises:
        UsageError: with the way out.
    """
    if not any(found.store.committed(f"stages/{digest}") for digest in found.plan.stages):
        failed = failed_stages.reasons(found.plan, found.store)
        why = "".join(f"\n  `{found.plan.stages[digest].label}` failed: {reason}" for digest, reason in failed.items())
        raise UsageError(
            f"nothing of `{found.plan.experiment}` is finished in the store {found.store.location}. Run the spec first "
            f"(`slimvit run`), or name another store with `--store`.{why}"
        )


def combinations_named(plan: Plan, name: str) -> list[Combination]:
    """The combination of this name with all its seeds.

    Raises:
        UsageError: if there is none; names the nearest.
    """
    named = [c for c in plan.combinations if c.name == name]
    if not named:
        known = list(dict.fromkeys(c.name for c in plan.combinations))
        near = nearest(name, known)
        advice = f"; did you mean `{near}`?" if near else "."
        raise UsageError(f"`{plan.experiment}` has no combination `{name}`{advice} It has: {listed(known)}")
    return named


def latest_plan(name: str, store: ArtifactStore) -> Plan | None:
    """What was last run or measured of an experiment on a store; `None` if nothing was.

    Raises:
        StoreError: if the stored plan is damaged.
    """
    kept = list(store.names(f"plans/{name}"))  # sorted, and they begin with a timestamp
    return _read(store, kept[-1]).plan if kept else None


def plans_of(name: str, store: ArtifactStore) -> list[Found]:
    """Everything that runs left of an experiment, the oldest first.

    Raises:
        StoreError: if one of them is damaged.
    """
    return [_read(store, kept) for kept in store.names(f"plans/{name}")]


def latest_experiment(store: ArtifactStore) -> Experiment:
    """The experiment that was run last on a store.

    Raises:
        UsageError: if none was.
        StoreError: if what it left is damaged.
    """
    runs = sorted(store.names("plans"), key=lambda name: name.rsplit("/", 1)[-1])
    if not runs:
        raise UsageError(f"the store {store.location} has no experiment. Run a spec first, or name another store.")
    return _read(store, runs[-1]).experiment


def load_spec(path: Path, assignments: Sequence[str]) -> SpecDocument:
    """A spec file with the strategies that are installed.

    Raises:
        SpecProblems: if the spec is wrong.
    """
    return load(path, assignments, resolver=registry.resolver)


def _from_spec(path: Path, store_root: str | Path | None, assignments: Sequence[str]) -> Found:
    document = load_spec(path, assignments)
    experiment = document.experiment
    store = open_store(store_root or experiment.storage)
    return Found(make_plan(document, store), experiment, store)


def _from_store(name: str, store: ArtifactStore) -> Found:
    known = experiments(store)
    if name not in known:
        near = nearest(name, known)
        raise UsageError(
            f"there is no spec file `{name}`, and the store {store.location} has no experiment of that name"
            + (f"; did you mean `{near}`? " if near else ". ")
            + (f"It has: {', '.join(known)}." if known else "It has none. Run a spec first, or name it with `--store`.")
        )
    return _read(store, list(store.names(f"plans/{name}"))[-1])  # sorted, and they begin with a timestamp


def _read(store: ArtifactStore, name: str) -> Found:
    context = {RESOLVER_KEY: registry.resolver}
    try:
        folder = store.fetch(name)
        plan = Plan.model_validate_json((folder / "plan.json").read_bytes(), context=context)
        experiment = Experiment.model_validate_json((folder / "experiment.json").read_bytes(), context=context)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the plan `{name}` in {store.location} cannot be read: {error}. Delete `{store.place(name)}`; then the "
            "plan before it counts, and `slimvit run` on the spec keeps a new one."
        ) from error
    return Found(plan, experiment, store)
