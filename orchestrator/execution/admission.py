"""Check before anything starts that the cluster can hold what the spec asks for, and how often."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.nodes import NodeGroup
from orchestrator.errors import ResourceError
from orchestrator.planning.feasible import not_shared, worker_counts
from orchestrator.planning.plan import MeasureStage, Stage
from specs.resources import ResourcesSpec
from specs.words import counted

Resources = Mapping[str, float]
"""Ray's resource names (`CPU`, `GPU`) → amount."""


@dataclass(frozen=True)
class Admission:
    """What is started: so many equal lanes."""

    lanes: int
    worker: dict[str, float]
    """Resources of one worker."""
    counts: tuple[int, ...] = (1,)
    """Numbers of workers that a lane may have, fewest first."""


def admit(
    spec: ResourcesSpec,
    nodes: Sequence[Resources],
    *,
    stages: int,
    growth: Sequence[NodeGroup] | None = (),
    counts: Sequence[int] = (),
) -> Admission:
    """Decide how many lanes to start.

    Args:
        spec: what one lane needs, and how many are wanted.
        nodes: total resources of each node that there is.
        stages: stages that could run at the same time at most; more lanes would only wait.
        growth: nodes that an autoscaler can add; `None` = there is one, and nobody knows what it can add.
        counts: numbers of workers that share the batches of at least one stage; none = those of the spec.

    Raises:
        ResourceError: if not even one lane fits, or not as many as `resources.lanes` demands.
    """
    worker, unknown, growth = worker_resources(spec), growth is None, growth or ()
    counts = sorted(counts or range(spec.fewest_workers, spec.most_workers + 1))
    workers = _workers_held(worker, [*nodes, *to_come(growth)])
    if unknown and workers < counts[0] * (spec.lanes or 1):
        return Admission(lanes=min(spec.lanes or 1, stages), worker=worker, counts=tuple(counts))
    if workers < counts[0]:
        raise ResourceError(f"{lacking(spec, nodes, growth)}. {_way_out(spec, nodes, growth)}")
    lanes = workers // counts[0] if spec.lanes else max(1, workers // counts[-1])
    if spec.lanes is not None and spec.lanes > lanes:
        raise ResourceError(
            f"`resources.lanes: {spec.lanes}` with {_workers(spec)} a lane does not fit: the cluster has "
            f"{_cluster(nodes, growth)}, which holds {lanes}. Set `resources.lanes` to at most {lanes}, or leave it out"
        )
    return Admission(lanes=max(1, min(spec.lanes or lanes, stages)), worker=worker, counts=tuple(counts))


def worker_resources(spec: ResourcesSpec) -> dict[str, float]:
    """Resources of one worker."""
    worker = {"CPU": float(spec.cpus_per_worker)}
    if spec.gpus_per_worker:
        worker["GPU"] = spec.gpus_per_worker
    return worker


def to_come(growth: Sequence[NodeGroup]) -> list[Resources]:
    """The nodes that an autoscaler can add, one by one."""
    return [group.resources for group in growth for _ in range(group.most)]


def lacking(spec: ResourcesSpec, nodes: Sequence[Resources], growth: Sequence[NodeGroup] = ()) -> str:
    """What a lane needs beside what there is, and what could be added."""
    held = _workers_held(worker_resources(spec), [*nodes, *to_come(growth)])
    return f"a stage needs {_workers(spec)}, but the cluster has {_cluster(nodes, growth)}, which holds {held}"


def workers_on(node: Resources, worker: Resources) -> int:
    """How many workers a node holds."""
    # Fractions of a GPU: 0.1 must fit ten times, whatever binary floating point says.
    return min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items())


def check_measurements(stages: Iterable[Stage], nodes: Sequence[Resources]) -> None:
    """Refuse conditions of measurement that no node can offer, before anything trains for them.

    Raises:
        ResourceError: if a stage is to be measured on a GPU or with threads that are not there.
    """
    for stage in stages:
        if isinstance(stage, MeasureStage) and (reason := _not_offered(stage, nodes)) is not None:
            raise ResourceError(reason)


def check_stages(stages: Iterable[Stage], spec: ResourcesSpec, nodes: Sequence[Resources] | None) -> None:
    """Refuse what could never run on this cluster.

    Args:
        stages: that are to run.
        spec: what one worker needs.
        nodes: total resources of each node that there is or can be; `None` = nobody knows.

    Raises:
        ResourceError: for the first of the stages.
    """
    for stage in stages:
        if (reason := never_runs(stage, spec, nodes)) is not None:
            raise ResourceError(reason)


def never_runs(stage: Stage, spec: ResourcesSpec, nodes: Sequence[Resources] | None) -> str | None:
    """Why a stage could never run on this cluster, in as many words as `check_stages` has; `None` if it could."""
    if (reason := not_shared(stage, spec)) is not None:
        return reason
    if nodes is None:
        return None
    if isinstance(stage, MeasureStage):
        return _not_offered(stage, nodes)
    fewest, held = worker_counts(stage, spec)[0], _workers_held(worker_resources(spec), nodes)
    if fewest <= held:
        return None
    return (
        f"`{stage.label}` needs {counted(fewest, 'worker')}, because no smaller number within `resources.workers` "
        f"shares its batch, but the cluster has {_cluster(nodes)}, which holds {held}. Change its "
        "`training.batch_size` or `training.micro_batch`, lower `resources.workers`, or give `--address` of a larger "
        "cluster"
    )


def _not_offered(stage: MeasureStage, nodes: Sequence[Resources]) -> str | None:
    """Why no node can offer the conditions of a measurement."""
    conditions = stage.measurement
    if conditions.device == "cuda" and not _has_gpu(nodes):
        return (
            f"`{stage.label}` is to be measured with `device: cuda`, but the cluster has {_cluster(nodes)}. Set "
            "`measurement.device` (of `slimvit measure`: `--conditions device=`) to `cpu`, or give `--address` of "
            "a cluster with GPUs"
        )
    most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if conditions.threads is not None and conditions.threads > most_cpus:
        return (
            f"`{stage.label}` is to be measured with `threads: {conditions.threads}`, but the cluster has "
            f"{_cluster(nodes)}, and threads that share a core only slow each other. Set `measurement.threads` (of "
            f"`slimvit measure`: `--conditions threads=`) to at most {most_cpus:g}"
        )
    return None


def _workers_held(worker: Resources, nodes: Sequence[Resources]) -> int:
    """A worker lives on one node: what is left over on several nodes does not add up to one more."""
    return sum(workers_on(node, worker) for node in nodes)


def _has_gpu(nodes: Sequence[Resources]) -> bool:
    return any(node.get("GPU", 0.0) for node in nodes)


def _workers(spec: ResourcesSpec) -> str:
    gpus = f" and {counted(spec.gpus_per_worker, 'GPU')}" if spec.gpus_per_worker else ""
    at_least = "" if isinstance(spec.workers, int) else "at least "
    return f"{at_least}{counted(spec.fewest_workers, 'worker')} of {counted(spec.cpus_per_worker, 'CPU')}{gpus}"


def _cluster(nodes: Sequence[Resources], growth: Sequence[NodeGroup] = ()) -> str:
    more = [f"{group.most} of {_amounts([group.resources])} (`{group.name}`)" for group in growth if group.most]
    added = f" and can add at most {', '.join(more)}" if more else ""
    return f"{_amounts(nodes)} on {counted(len(nodes), 'node')}{added}"


def _amounts(nodes: Sequence[Resources]) -> str:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"


def _way_out(spec: ResourcesSpec, nodes: Sequence[Resources], growth: Sequence[NodeGroup] = ()) -> str:
    if spec.gpus_per_worker and not _has_gpu([*nodes, *to_come(growth)]):
        return "Set `resources.gpus_per_worker` to 0 to train on CPU, or give `--address` of a cluster with GPUs"
    return (
        "Lower `resources.workers`, `resources.cpus_per_worker` or `resources.gpus_per_worker` (no stage's result "
        "depends on them), or give `--address` of a larger cluster"
    )
