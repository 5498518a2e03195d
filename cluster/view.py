"""What a running cluster has and does: its nodes, and the jobs that it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.connect import connect


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    address: str
    alive: bool
    resources: dict[str, float]
    """Ray's resource names (`CPU`, `GPU`) → amount."""


@dataclass(frozen=True)
class Job:
    """A run that was sent to the cluster."""

    name: str
    state: str


@dataclass(frozen=True)
class View:
    """A cluster, seen once."""

    address: str
    dashboard: str | None
    nodes: tuple[Node, ...]
    free: dict[str, float]
    """Resources that nobody uses at this moment."""
    jobs: tuple[Job, ...]


def look(address: str) -> View:
    """Join a cluster, look around, and leave it as it was.

    Raises:
        ClusterUnreachable: if no cluster answers at the address.
    """
    with connect(address) as connection:
        import ray

        nodes: Any = ray.nodes()  # untyped
        free: Any = ray.available_resources()
        return View(
            connection.address,
            connection.dashboard_url,
            tuple(Node(n["NodeManagerAddress"], bool(n["Alive"]), _amounts(n["Resources"])) for n in nodes),
            _amounts(free),
            _jobs(connection.dashboard_url),
        )


def _amounts(resources: dict[str, float]) -> dict[str, float]:
    """What people count; Ray's own entries (`node:…`, bytes of memory, accelerator types) are left out."""
    return {name: resources[name] for name in ("CPU", "GPU") if name in resources}


def _jobs(dashboard: str | None) -> tuple[Job, ...]:
    if dashboard is None:
        return ()
    import requests
    from ray.job_submission import JobSubmissionClient

    try:
        jobs = JobSubmissionClient(dashboard).list_jobs()
    except (ConnectionError, RuntimeError, requests.RequestException):  # a dashboard that is down hides no nodes
        return ()
    return tuple(Job(job.submission_id, str(job.status.value)) for job in jobs if job.submission_id)
