"""Which artefacts an experiment reaches: its stages and everything that belongs to them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.storage import Kept
from orchestrator.planning.plan import Plan

ALWAYS = ("published",)
"""Kinds that nobody can compute anew."""


@dataclass(frozen=True)
class Roots:
    """What is to stay."""

    plans: Mapping[str, tuple[Plan, ...]]
    """Experiment → its plans that count."""
    records: frozenset[str]
    """Names of the notes on their records."""

    def reached_by(self, name: str) -> list[str]:
        """Experiments that need an artefact, sorted."""
        kind, _, rest = name.partition("/")
        if kind in ("stages", "progress", "answers", "failures"):
            digest = rest.split("/")[0]
            return sorted(e for e, plans in self.plans.items() if any(digest in plan.stages for plan in plans))
        if kind == "searches":
            digest = rest.split("/")[0]
            searches = {e: {p.search.digest for p in plans if p.search is not None} for e, plans in self.plans.items()}
            return sorted(e for e, digests in searches.items() if digest in digests)
        if kind == "plans":
            experiment = rest.split("/")[0]
            return [experiment] if experiment in self.plans else []
        return []

    def keeps(self, name: str) -> bool:
        """Whether an artefact stays."""
        return name.split("/")[0] in ALWAYS or name in self.records or bool(self.reached_by(name))


@dataclass(frozen=True)
class Policy:
    """What stays besides."""

    progress: bool = False
    """Checkpoints of stages that are not finished, whoever needs them."""
    days: float = 1.0
    """Whatever was written within so many days: a run may have just begun to use it."""


@dataclass(frozen=True)
class Doomed:
    """Something that goes."""

    kept: Kept
    why: str
    leftover: bool = False
    """It was never committed."""


def doomed(
    artefacts: tuple[Kept, ...], leftovers: tuple[Kept, ...], roots: Roots, leased: frozenset[str], policy: Policy
) -> list[Doomed]:
    """What goes, and why.

    Args:
        artefacts: all that are committed.
        leftovers: all that never were.
        roots: what is to stay.
        leased: names of stages' artefacts that runs are at.
        policy: what stays besides.
    """
    finished = {kept.name.removeprefix("stages/") for kept in artefacts if kept.name.startswith("stages/")}
    found = []
    for kept in artefacts:
        kind, _, rest = kept.name.partition("/")
        digest = rest.split("/")[0]
        if kept.age_s < policy.days * 86_400 or f"stages/{digest}" in leased:
            continue
        if kind == "progress" and digest in finished:
            found.append(Doomed(kept, "progress of a finished stage"))
        elif not roots.keeps(kept.name) and not (kind == "progress" and policy.progress):
            found.append(Doomed(kept, "no named experiment needs it"))
    # A writer that is alive touches its files; a day is far beyond the slowest upload.
    old = max(policy.days, 1.0) * 86_400
    found += [Doomed(kept, "left by a writer that was killed", True) for kept in leftovers if kept.age_s >= old]
    return found
