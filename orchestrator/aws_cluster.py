"""`slimvit cluster` at AWS: ask everything first, show what it costs, then let Ray's launcher do it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from cluster import aws
from cluster.aws_checks import Findings, Instance, ask
from cluster.aws_session import AwsUnreachable, head_address, session
from cluster.fill import as_yaml
from cluster.state import forget, recall, remember
from cluster.token import make_token
from orchestrator.errors import Interrupted, ResourceError
from orchestrator.execution import admission
from specs.cluster import AwsCluster, cluster_name
from specs.experiment import Experiment
from specs.resources import ResourcesSpec

_KIND = "aws"
PRICES = "aws-prices"
"""Kind under which what AWS said of prices is remembered, for `slimvit plan --cluster`."""


def up(
    experiment: Experiment,
    cluster: AwsCluster,
    *,
    confirm: Callable[[str], bool],
    dry_run: bool,
    write: Callable[[Mapping[str, str]], str],
) -> str:
    """Check, show the cost, ask, start.

    Raises:
        ResourceError: with all that AWS has against it, or if the launcher fails.
        Interrupted: if the user does not want it for that money.
    """
    if dry_run:
        return write({"aws.yaml": as_yaml(aws.launcher_config(experiment, cluster))})
    name = cluster_name(cluster, experiment.name)
    found = _checked(experiment, cluster)
    config = aws.launcher_config(experiment, cluster, found.ami)
    _remember_prices(name, cluster, experiment.resources, found)
    if not confirm(cost(cluster, found)):
        raise Interrupted("nothing was started")
    make_token()
    # Written first: a start that fails half-way has left machines that `down` must find.
    file = remember(_KIND, name, {"config": config})
    try:
        aws.start(config)
    except (Exception, SystemExit) as error:  # the launcher raises what it likes, and exits
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"Ray's launcher failed: {said}. Nodes may be running; `slimvit cluster down` ends them (its configuration "
            f"is kept in {file})"
        ) from error
    return status(experiment, cluster)


def down(experiment: Experiment, cluster: AwsCluster, *, confirm: Callable[[str], bool]) -> str:
    """End all nodes that `up` started; the bucket stays.

    Raises:
        ResourceError: if AWS cannot be asked, or the launcher fails.
        Interrupted: if the user does not want it.
    """
    name = cluster_name(cluster, experiment.name)
    config = _config(experiment, cluster)
    if not confirm(f"All nodes of `{name}` in `{cluster.region}` are ended; the artefact store stays."):
        raise Interrupted("nothing was ended")
    try:
        aws.stop(config)
    except (Exception, SystemExit) as error:
        raise ResourceError(
            f"Ray's launcher failed: {error}. Look for instances with the tag `ray-cluster-name={name}` in the EC2 "
            "console, and try again"
        ) from error
    forget(_KIND, name)
    return f"`{name}` is down"


def status(experiment: Experiment, cluster: AwsCluster) -> str:
    """Its head, and how to reach it.

    Raises:
        ResourceError: if AWS cannot be asked.
    """
    name = cluster_name(cluster, experiment.name)
    if recall(_KIND, name) is None:
        return f"`{name}` was not started from here"
    try:
        head = head_address(_config(experiment, cluster))
    except AwsUnreachable as error:
        raise ResourceError(str(error)) from error
    except (RuntimeError, ValueError, SystemExit):  # the launcher's ways to say that there is none
        return f"`{name}` has no head node in `{cluster.region}`"
    key = f" -i {cluster.ssh_private_key}" if cluster.ssh_private_key else ""
    return (
        f"`{name}` is up: head {head}\n"
        f"  ssh{key} -N -L 8265:127.0.0.1:8265 {cluster.ssh_user}@{head}       tunnel to dashboard and jobs\n"
        "  slimvit submit SPEC --address http://127.0.0.1:8265       send a run through it"
    )


def cost(cluster: AwsCluster, found: Findings) -> str:
    """What it costs by the hour: from the head and the least workers, to all of them."""
    assert found.head is not None
    assert found.worker is not None
    paid = "spot, at this moment's price" if cluster.spot else "on demand"
    lines = [
        f"AWS account {found.account}, {cluster.region}",
        f"  head    1 × {found.head.name}: {_dollars(found.head_price)}",
        f"  workers {cluster.min_workers}–{cluster.max_workers} × {found.worker.name} ({found.worker.vcpus} virtual "
        f"CPUs, {found.worker.gpus} GPUs; {paid}): {_dollars(found.worker_price)} each",
        *(f"  note: {note}" for note in found.notes),
    ]
    if found.head_price is not None and found.worker_price is not None:
        least, most = (found.head_price + n * found.worker_price for n in (cluster.min_workers, cluster.max_workers))
        lines.append(f"Together {least:.2f} to {most:.2f} US dollars an hour; disks and traffic are not in it.")
    else:
        lines.append("What it costs in all is not known; see the notes.")
    return "\n".join(lines)


def workers_on(instance: Instance, resources: ResourcesSpec) -> int:
    """How many workers of the spec fit on a node."""
    node = {"CPU": float(instance.vcpus), "GPU": float(instance.gpus)}
    return admission.workers_on(node, admission.worker_resources(resources))


def _checked(experiment: Experiment, cluster: AwsCluster) -> Findings:
    try:
        client, regions = session(cluster.region)
    except AwsUnreachable as error:
        raise ResourceError(str(error)) from error
    found = ask(experiment, cluster, client, regions=regions)
    problems = list(found.problems)
    if found.worker is not None and workers_on(found.worker, experiment.resources) < 1:
        wanted = experiment.resources
        problems.append(
            f"`cluster.worker_instance: {found.worker.name}` has {found.worker.vcpus} virtual CPUs and "
            f"{found.worker.gpus} GPUs, and holds no worker of {wanted.cpus_per_worker} CPUs and "
            f"{wanted.gpus_per_worker:g} GPUs (`resources`). Take a larger type, or lower `resources`"
        )
    if problems:
        notes = "".join(f"\n  note: {note}" for note in found.notes)
        raise ResourceError(f"AWS: {len(problems)} in the way:\n" + "\n".join(f"  - {p}" for p in problems) + notes)
    return found


def _config(experiment: Experiment, cluster: AwsCluster) -> dict[str, Any]:
    """The configuration that the cluster was started with, or the spec's if that is not known here."""
    known = recall(_KIND, cluster_name(cluster, experiment.name))
    config = (known or {}).get("config")
    return config if isinstance(config, dict) else aws.launcher_config(experiment, cluster)


def _remember_prices(name: str, cluster: AwsCluster, resources: ResourcesSpec, found: Findings) -> None:
    if found.worker is None or found.worker_price is None:
        return
    prices = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "instance": found.worker.name,
        "region": cluster.region,
        "worker": found.worker_price / workers_on(found.worker, resources),
    }
    remember(PRICES, name, prices)


def _dollars(price: float | None) -> str:
    return "price not known" if price is None else f"{price:.4g} US dollars an hour"
