"""The queue as an actor of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.leases import Leases
from cluster.storage import ArtifactStore
from orchestrator.execution.queue import StageQueue

if TYPE_CHECKING:
    from ray.actor import ActorHandle


def queue_actor(*given: Any, **options: Any) -> ActorHandle[Any]:
    """The queue as an actor on this node: it lives and dies with this process.

    Args:
        given: as `StageQueue` takes it.
        options: the same, and the `store` whose leases it takes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(_LeasedQueue)
    queue: ActorHandle[Any] = actor.options(num_cpus=0, scheduling_strategy=here).remote(*given, **options)
    return queue


class _LeasedQueue(StageQueue):
    """The queue with its leases, which are made in the process that holds them."""

    def __init__(self, *given: Any, store: ArtifactStore, **options: Any) -> None:
        super().__init__(*given, leases=Leases(store.register(), store.committed), **options)
