"""What of a plan is handed to the queue. What cannot run on this cluster fails with a reason before it is started."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from orchestrator.planning.plan import Plan, Stage


def sort_out(
    plan: Plan, wanted: Collection[str], why_not: Callable[[Stage], str | None]
) -> tuple[frozenset[str], dict[str, str]]:
    """Sort out what cannot run.

    Args:
        plan: the stages.
        wanted: digests of those that are to run.
        why_not: why a stage cannot run; `None` if it can.

    Returns:
        The wanted stages, less those that are only there for stages that cannot run; and of those that cannot run,
        why.
    """
    refused = {d: why for d, stage in plan.stages.items() if d in wanted and (why := why_not(stage)) is not None}
    if not refused:
        return frozenset(wanted), {}
    needed = {d for c in plan.combinations if not refused.keys() & set(c.stages) for d in c.stages}
    lost = set(refused)  # and what reads them, which is shown as skipped
    for digest, stage in plan.stages.items():  # parents first
        if lost & set(stage.parents):
            lost.add(digest)
    return frozenset(d for d in wanted if d in needed or d in lost), refused


def to_queue(plan: Plan, to_run: Collection[str], left_out: Collection[str]) -> tuple[dict[str, Stage], list[str]]:
    """The stages to run and those that they read, parents first; and the digests of the latter, which are finished.

    Args:
        plan: the stages.
        to_run: digests.
        left_out: digests of others, which are neither finished nor to run.
    """
    needed = {*to_run, *(parent for digest in to_run for parent in plan.stages[digest].parents)} - {*left_out}
    stages = {digest: stage for digest, stage in plan.stages.items() if digest in needed}
    return stages, [digest for digest in stages if digest not in to_run]


def parallel_stages(stages: Mapping[str, Stage]) -> int:
    """Upper bound of how many stages can run side by side: of a chain, one can."""
    depth: dict[str, int] = {}
    for digest, stage in stages.items():
        if not stage.alone:
            depth[digest] = 1 + max((depth[parent] for parent in stage.parents if parent in depth), default=0)
    return max(1, len(depth) - max(depth.values(), default=1) + 1)
