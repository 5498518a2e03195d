"""The configuration of Ray's cluster launcher for AWS, from a spec."""

from __future__ import annotations

from typing import Any

from cluster.fill import fill
from specs.cluster import AwsCluster, cluster_name
from specs.experiment import Experiment

NEWEST_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Public parameter in which AWS keeps the newest Deep Learning base image: NVIDIA driver, Docker, its GPU runtime."""
UNKNOWN_AMI = "ami-found-when-started"
"""Stands in a dry run's file for an image that AWS was not asked for."""


def launcher_config(experiment: Experiment, cluster: AwsCluster, ami: str | None = None) -> dict[str, Any]:
    """What `ray up` takes.

    Args:
        experiment: whose name the cluster has if it has none of its own.
        cluster: what is wanted.
        ami: machine image that was found where the spec names none.

    Raises:
        ValueError: if Ray's schema refuses it; that is our mistake, or another version of Ray.
    """
    spot: dict[str, Any] = {"MarketType": "spot"}
    if cluster.max_price is not None:
        spot["SpotOptions"] = {"MaxPrice": f"{cluster.max_price:g}"}
    config = fill(
        "aws",
        {
            "name": cluster_name(cluster, experiment.name),
            "max_workers": cluster.max_workers,
            "min_workers": cluster.min_workers,
            "idle_minutes": cluster.idle_minutes,
            "region": cluster.region,
            "zones": ",".join(cluster.availability_zones) or None,
            "ssh_user": cluster.ssh_user,
            "ssh_private_key": cluster.ssh_private_key,
            "key_name": cluster.key_name,
            "image": cluster.image,
            "head_instance": cluster.head_instance,
            "worker_instance": cluster.worker_instance,
            "ami": cluster.ami or ami or UNKNOWN_AMI,
            "instance_profile": {"Name": cluster.instance_profile} if cluster.instance_profile else None,
            "disk_gb": cluster.disk_gb,
            "market": spot if cluster.spot else None,
        },
    )
    check(config)
    return config


def check(config: dict[str, Any]) -> None:
    """Hold a configuration against the schema of the installed Ray.

    Raises:
        ValueError: naming the place.
    """
    from ray.autoscaler._private.util import validate_config

    validate_config(config)


def start(config: dict[str, Any]) -> None:
    """Start the head, which starts the workers; the same configuration again changes nothing that runs."""
    from ray.autoscaler.sdk import create_or_update_cluster

    create_or_update_cluster(config)


def stop(config: dict[str, Any]) -> None:
    """End all nodes of the cluster."""
    from ray.autoscaler.sdk import teardown_cluster

    teardown_cluster(config)
