"""Check before anything starts that the cluster can hold what the spec asks for, and how often."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import ResourceError
from orchestrator.planning.plan import MeasureStage, Stage
from specs.resources import ResourcesSpec

Resources = Mapping[str, float]
"""Ray's resource names (`CPU`, `GPU`) → amount."""


@dataclass(frozen=True)
class Admission:
    """What is started: so many equal lanes."""

    lanes: int
    worker: dict[str, float]
    """Resources of one worker."""


def admit(spec: ResourcesSpec, nodes: Sequence[Resources], *, stages: int) -> Admission:
    """Decide how many lanes to start.

    Args:
        spec: what one lane needs, and how many are wanted.
        nodes: total resources of each node, those that an autoscaler can add included.
        stages: stages that could run at the same time at most; more lanes would only wait.

    Raises:
        ResourceError: if not even one lane fits, or not as many as `resources.lanes` demands.
    """
    worker = {"CPU": float(spec.cpus_per_worker)}
    if spec.gpus_per_worker:
        worker["GPU"] = spec.gpus_per_worker
    # A worker lives on one node: what is left over on several nodes does not add up to one more.
    workers = sum(_fit(node, worker) for node in nodes)
    lanes = workers // spec.workers
    if lanes == 0:
        raise ResourceError(
            f"a stage needs {_workers(spec)}, but the cluster has {_cluster(nodes)}, which holds {workers}. "
            f"{_way_out(spec, nodes)}"
        )
    if spec.lanes is not None and spec.lanes > lanes:
        raise ResourceError(
            f"`resources.lanes: {spec.lanes}` with {_workers(spec)} a lane does not fit: the cluster has "
            f"{_cluster(nodes)}, which holds {lanes}. Set `resources.lanes` to at most {lanes}, or leave it out"
        )
    return Admission(lanes=max(1, min(spec.lanes or lanes, stages)), worker=worker)


def check_measurements(stages: Iterable[Stage], nodes: Sequence[Resources]) -> None:
    """Refuse conditions of measurement that no node can offer, before anything trains for them.

    Raises:
        ResourceError: if a stage is to be measured on a GPU or with threads that are not there.
    """
    most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    for stage in stages:
        if not isinstance(stage, MeasureStage):
            continue
        conditions = stage.measurement
        if conditions.device == "cuda" and not _has_gpu(nodes):
            raise ResourceError(
                f"`{stage.label}` is to be measured with `device: cuda`, but the cluster has {_cluster(nodes)}. Set "
                "`measurement.device` (of `slimvit measure`: `--conditions device=`) to `cpu`, or give `--address` of "
                "a cluster with GPUs"
            )
        if conditions.threads is not None and conditions.threads > most_cpus:
            raise ResourceError(
                f"`{stage.label}` is to be measured with `threads: {conditions.threads}`, but the cluster has "
                f"{_cluster(nodes)}, and threads that share a core only slow each other. Set `measurement.threads` (of "
                f"`slimvit measure`: `--conditions threads=`) to at most {most_cpus:g}"
            )


def _has_gpu(nodes: Sequence[Resources]) -> bool:
    return any(node.get("GPU", 0.0) for node in nodes)


def _fit(node: Resources, worker: Resources) -> int:
    # Fractions of a GPU: 0.1 must fit ten times, whatever binary floating point says.
    return min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items())


def _workers(spec: ResourcesSpec) -> str:
    gpus = f" and {_plural(spec.gpus_per_worker, 'GPU')}" if spec.gpus_per_worker else ""
    return f"{_plural(spec.workers, 'worker')} of {_plural(spec.cpus_per_worker, 'CPU')}{gpus}"


def _cluster(nodes: Sequence[Resources]) -> str:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{_plural(cpus, 'CPU')} and {_plural(gpus, 'GPU')} on {_plural(len(nodes), 'node')}"


def _plural(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _way_out(spec: ResourcesSpec, nodes: Sequence[Resources]) -> str:
    if spec.gpus_per_worker and not _has_gpu(nodes):
        return "Set `resources.gpus_per_worker` to 0 to train on CPU, or give `--address` of a cluster with GPUs"
    return (
        "Lower `resources.workers`, `resources.cpus_per_worker` or `resources.gpus_per_worker` (no stage's result "
        "depends on them), or give `--address` of a larger cluster"
    )
