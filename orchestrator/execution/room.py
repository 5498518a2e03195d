"""Where on the cluster lanes fit: arithmetic over nodes, so that it can be tested without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.execution.admission import workers_on
from orchestrator.execution.failures import Room


def room(
    nodes: Mapping[str, Mapping[str, float]],
    worker: Mapping[str, float],
    workers: int,
    placed: Iterable[Sequence[str]],
    starting: int = 0,
) -> Room:
    """What fits, in all and beside the lanes that there are.

    Args:
        nodes: node id → total resources.
        worker: resources of one worker.
        workers: that a lane needs at least.
        placed: of each lane that runs, the node of each worker.
        starting: workers of lanes that have no place yet; they are taken to go where most is free.
    """
    total = {node: workers_on(resources, worker) for node, resources in nodes.items()}
    free = dict(total)
    for lane in placed:
        for node in lane:
            if node in free:
                free[node] = max(0, free[node] - 1)
    for _ in range(starting):
        fullest = max(free, key=lambda node: (free[node], node), default=None)
        if fullest is not None:
            free[fullest] = max(0, free[fullest] - 1)
    return Room(total, free, workers)
