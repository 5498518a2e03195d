"""What a run finds of earlier ones and should not go on from: damaged results, and leases that nobody gives back."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan
from orchestrator.planning.status import to_run
from specs.address import is_remote

_AT_ONCE = 4
"""Artefacts that are read side by side."""


def discard_damaged(plan: Plan, store: ArtifactStore, done: Collection[str]) -> dict[str, str]:
    """Delete finished stages whose files differ from their digests; what of them is needed is to run again.

    On a disk every finished stage of the plan is read, in a bucket only those that stages to run will read: there the
    store has checksums of its own, and reading costs time and money.

    Args:
        plan: the stages.
        store: where they are.
        done: digests of those that are finished.

    Returns:
        Digest → what was wrong.
    """
    read = set(done)
    if is_remote(store.location):
        read &= {parent for digest in to_run(plan, frozenset(done)) for parent in plan.stages[digest].parents}
    digests = [digest for digest in plan.stages if digest in read]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        problems = threads.map(lambda digest: _problem(store, f"stages/{digest}"), digests)
        found = {digest: problem for digest, problem in zip(digests, problems, strict=True) if problem}
    for digest in found:
        store.delete(f"stages/{digest}")
    return found


def forget_leases(plan: Plan, store: ArtifactStore, done: Collection[str]) -> None:
    """Remove the leases of finished stages. Whoever was killed between the commit and giving the lease back left one;
    as nobody computes a finished stage, nobody would ever take it over."""
    register, finished = store.register(), {f"stages/{digest}" for digest in done}
    for name in register.names():
        if name in finished:
            register.remove(name)


def _problem(store: ArtifactStore, name: str) -> str:
    """What is wrong with an artefact, in a line; empty if nothing is."""
    try:
        if is_remote(store.location):
            store.fetch(name)  # what is sound stays in this machine's cache
            return ""
        return "; ".join(store.damage(name))
    except FileNotFoundError:  # deleted meanwhile
        return ""
    except ValueError as error:
        return str(error)
