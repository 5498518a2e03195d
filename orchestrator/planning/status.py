"""What of a plan is finished, what is to run, and what is not needed any more."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan

Status = Literal["done", "to run", "not needed"]


def finished(plan: Plan, store: ArtifactStore) -> frozenset[str]:
    """Digests of the plan's stages whose artefacts are committed."""
    there = store.present([f"stages/{digest}" for digest in plan.stages])
    return frozenset(digest for digest in plan.stages if f"stages/{digest}" in there)


def to_run(plan: Plan, done: Set[str]) -> frozenset[str]:
    """Digests of the stages that have to run: results and measurements that are missing, and what those read.

    A missing stage whose children are all finished is not needed again (a teacher deleted to save room), nor is one
    whose combinations were all stopped early.
    """
    going_on = (c for c in plan.combinations if c.name not in plan.stopped)
    wanted = {digest for c in going_on for digest in (c.result, c.measured_by)} - done
    for digest in reversed(plan.stages):  # children before parents
        if digest in wanted:
            wanted |= set(plan.stages[digest].parents) - done
    return frozenset(wanted)


def statuses(plan: Plan, store: ArtifactStore) -> dict[str, Status]:
    """Status of every stage, by digest."""
    done = finished(plan, store)
    missing = to_run(plan, done)
    return {d: "done" if d in done else "to run" if d in missing else "not needed" for d in plan.stages}
