"""Manifests for KubeRay: a cluster that stays (RayCluster), or one for a single run (RayJob)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import posixpath
from typing import Any

from cluster.fill import fill
from specs.address import is_remote
from specs.cluster import KubernetesCluster, cluster_name
from specs.experiment import Experiment

_SPEC_FOLDER = "/etc/slimvit"
_STORE_VOLUME = "store"
_LONGEST_NAME = 47
"""KubeRay appends to the names of jobs and clusters and refuses longer ones."""


def problems(experiment: Experiment, cluster: KubernetesCluster) -> list[str]:
    """Why the run could not work on pods, each with its way out; empty if nothing is known against it."""
    found = []
    root = experiment.storage.root
    if is_remote(root) and cluster.storage_class is not None:
        found.append(
            f"`cluster.storage_class` makes a shared folder, but `storage.root` is `{root}`; leave one of them"
        )
    if not is_remote(root) and cluster.storage_class is None:
        found.append(
            f"`storage.root: {root}` is a folder, and pods share none. Set it to `s3://BUCKET/PREFIX`, or set "
            "`cluster.storage_class` to a class that allows ReadWriteMany"
        )
    if not is_remote(root) and _shared_folder(experiment) == "/":
        found.append(f"`storage.root: {root}` must lie in a folder of its own, such as `/shared/store`")
    record = experiment.tracking.uri
    if record.startswith("sqlite:///") and not _is_shared(experiment, cluster, record.removeprefix("sqlite:///")):
        found.append(
            f"`tracking.uri: {record}` is a file in a pod, and ends with it. Set it to the address of an MLflow server "
            "(`http://HOST:PORT`)"
        )
    gpus = _gpus(experiment, cluster)
    if gpus < experiment.resources.gpus_per_worker:
        found.append(
            f"`cluster.gpus: {gpus}` a pod holds no worker with `resources.gpus_per_worker: "
            f"{experiment.resources.gpus_per_worker:g}`; raise it"
        )
    if _cpus(experiment, cluster) < experiment.resources.cpus_per_worker:
        found.append(
            f"`cluster.cpus: {cluster.cpus}` a pod holds no worker with `resources.cpus_per_worker: "
            f"{experiment.resources.cpus_per_worker}`; raise it"
        )
    return found


def ray_cluster(experiment: Experiment, cluster: KubernetesCluster) -> list[dict[str, Any]]:
    """Manifests of a cluster that stays until it is taken down: the RayCluster, and its shared folder if it has one."""
    return [*_volume(experiment, cluster), fill("raycluster", _values(experiment, cluster, spec=None))]


def ray_job(experiment: Experiment, cluster: KubernetesCluster, spec: str) -> list[dict[str, Any]]:
    """Manifests of one run on a cluster of its own: shared folder, the spec, and the RayJob, which has retries.

    The name is made from the spec, so that applying the same spec twice is one run.

    Args:
        spec: text of the resolved spec, its paths as they are in the pods.
    """
    digest = hashlib.sha256(spec.encode()).hexdigest()[:8]
    name = f"{cluster_name(cluster, experiment.name)[: _LONGEST_NAME - 9].rstrip('-')}-{digest}"
    place = {"name": name, "namespace": cluster.namespace, "cluster": cluster_name(cluster, experiment.name)}
    inner = fill("raycluster", _values(experiment, cluster, spec=name))["spec"]
    command = f"slimvit run {_SPEC_FOLDER}/experiment.yaml --address auto --plain"
    job = {
        **place,
        "entrypoint": command,
        "retries": cluster.retries,
        "cluster_spec": inner,
        "image": cluster.image,
    }
    return [*_volume(experiment, cluster), fill("spec", {**place, "experiment": spec}), fill("rayjob", job)]


def _values(experiment: Experiment, cluster: KubernetesCluster, spec: str | None) -> dict[str, Any]:
    """What `templates/raycluster.yaml` asks for; `spec` names the ConfigMap with the spec, for the head of a job."""
    gpus = _gpus(experiment, cluster)
    worker = {"cpu": str(_cpus(experiment, cluster)), "memory": f"{cluster.memory_gib}Gi"}
    if gpus:
        worker[cluster.gpu_resource] = str(gpus)
    volumes, mounts = _shared(experiment, cluster)
    spec_volume = [] if spec is None else [{"name": "spec", "configMap": {"name": spec}}]
    spec_mount = [] if spec is None else [{"name": "spec", "mountPath": _SPEC_FOLDER, "readOnly": True}]
    secrets = [{"secretRef": {"name": name}} for name in cluster.env_secrets]
    tolerations = [toleration.model_dump(exclude_none=True) for toleration in cluster.tolerations]
    return {
        "name": cluster_name(cluster, experiment.name),
        "namespace": cluster.namespace,
        "ray_version": importlib.metadata.version("ray"),
        "token_secret": cluster.token_secret,
        "idle_seconds": round(60 * cluster.idle_minutes),
        "image": cluster.image,
        "service_account": cluster.service_account,
        "env_from": secrets or None,
        "head_resources": {"cpu": str(cluster.head_cpus), "memory": f"{cluster.head_memory_gib}Gi"},
        "head_mounts": [*mounts, *spec_mount],
        "head_volumes": [*volumes, *spec_volume],
        "min_workers": cluster.min_workers,
        "max_workers": cluster.max_workers,
        "node_selector": cluster.node_selector or None,
        "tolerations": tolerations or None,
        "worker_resources": worker,
        "worker_mounts": mounts,
        "worker_volumes": volumes,
    }


def _shared(experiment: Experiment, cluster: KubernetesCluster) -> tuple[list[Any], list[Any]]:
    """Volumes and mounts of every pod: memory for Ray's objects and the loaders, and the shared folder."""
    volumes: list[Any] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts: list[Any] = [{"name": "shm", "mountPath": "/dev/shm"}]
    if cluster.storage_class is not None:
        claim = {"claimName": _claim(experiment, cluster)}
        volumes.append({"name": _STORE_VOLUME, "persistentVolumeClaim": claim})
        mounts.append({"name": _STORE_VOLUME, "mountPath": _shared_folder(experiment)})
    return volumes, mounts


def _volume(experiment: Experiment, cluster: KubernetesCluster) -> list[dict[str, Any]]:
    if cluster.storage_class is None:
        return []
    values = {
        "name": _claim(experiment, cluster),
        "namespace": cluster.namespace,
        "storage_class": cluster.storage_class,
        "storage_gb": cluster.storage_gb,
    }
    return [fill("volume", values)]


def _claim(experiment: Experiment, cluster: KubernetesCluster) -> str:
    return f"{cluster_name(cluster, experiment.name)}-store"


def _shared_folder(experiment: Experiment) -> str:
    return posixpath.dirname(experiment.storage.root.rstrip("/")) or "/"


def _is_shared(experiment: Experiment, cluster: KubernetesCluster, path: str) -> bool:
    folder = _shared_folder(experiment)
    return cluster.storage_class is not None and posixpath.normpath(path).startswith(f"{folder}/")


def _cpus(experiment: Experiment, cluster: KubernetesCluster) -> int:
    return cluster.cpus if cluster.cpus is not None else experiment.resources.cpus_per_worker


def _gpus(experiment: Experiment, cluster: KubernetesCluster) -> int:
    return cluster.gpus if cluster.gpus is not None else math.ceil(experiment.resources.gpus_per_worker)
