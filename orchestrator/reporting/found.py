"""What a reader has to know of settings that training found by a target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.planning.plan import Plan
from orchestrator.reporting.comparison import Comparison

SHOWN = 6
"""Names that a note lists; a long one is not read."""


class _Search(NamedTuple):
    """What one run's training found."""

    combination: str
    met: bool
    expected_macs: float


def notes_on_targets(comparison: Comparison, plan: Plan, trained: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Targets that were not reached, then accuracies on the images on which a setting was found.

    Args:
        trained: train stage → its `result.json`.
    """
    shown = {row.name for row in comparison.rows if row.measured}
    searches: dict[str, list[_Search]] = defaultdict(list)
    for combination in (c for c in plan.combinations if c.name in shown):
        targets = trained.get(combination.result, {}).get("targets", {})
        for strategy, found in targets.items():
            target = f"{strategy}.{found['option']}: {found['wanted']:g}"
            searches[target].append(_Search(combination.name, found["met"], found["expected_macs"]))
    for target, runs in searches.items():
        missed = [run for run in runs if not run.met]
        if missed:
            shares = sorted({f"{run.expected_macs:.3g}" for run in missed}, key=float)
            nearest = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
            yield (
                f"`{target}` was not reached by {len(missed)} of {len(runs)} runs with it "
                f"({named(run.combination for run in missed)}): no threshold does, and the nearest leaves {nearest} of "
                "the MACs without early exits. They stand here as they are. To reach it, set an earlier exit or a "
                "larger target."
            )
    if searches:
        fitted = named(run.combination for runs in searches.values() for run in runs)
        yield (
            f"Accuracies of {fitted} were taken on the validation images on which training found the threshold "
            f"({', '.join(f'`{target}`' for target in searches)}): they are optimistic by as much as one number can be "
            "fitted to them."
        )


def named(names: Iterable[str]) -> str:
    """Each name once, in order, the first few of them."""
    distinct: Collection[str] = dict.fromkeys(names)
    few = list(distinct)[:SHOWN]
    return ", ".join(few) + (f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else "")
