"""`slimvit cluster up`, `down` and `status`, and `slimvit submit` where the spec says where to.

What can be wrong is found and reported before anything is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from cluster.connect import ClusterUnreachable
from cluster.fill import as_yaml
from cluster.kubectl import KubectlError
from cluster.machine import MachineError
from orchestrator.errors import ResourceError, UsageError
from specs.cluster import (
    AddressCluster,
    AwsCluster,
    ClusterSpec,
    KubernetesCluster,
    LocalCluster,
    cluster_name,
)
from specs.experiment import Experiment
from specs.load import SpecDocument

Confirm = Callable[[str], bool]
"""Shows what it will cost and asks whether to go on."""
Files = Mapping[str, str]
"""File name → text."""


def up(document: SpecDocument, *, confirm: Confirm, dry_run: bool = False, out: Path | None = None) -> str:
    """Start the spec's cluster, or say what would be started.

    Args:
        document: the spec.
        confirm: asked before anything that costs money.
        dry_run: only write the files; for AWS this asks nobody anything, not even AWS.
        out: folder for the files of a dry run; `None` = they are returned as text.

    Raises:
        UsageError: if the spec names no cluster, or one that is not ours to start.
        ResourceError: if it cannot be started; every reason is named.
    """
    experiment, cluster = document.experiment, _cluster(document)
    name = cluster_name(cluster, experiment.name)
    match cluster:
        case LocalCluster():
            return _nothing_to_write(cluster) if dry_run else _up_local(name, cluster, document.path)
        case AddressCluster():
            return f"{status(document)}\n{_not_ours(cluster)}"
        case KubernetesCluster():
            return _up_kubernetes(experiment, cluster, dry_run, out)
        case AwsCluster():
            from orchestrator import aws_cluster

            return aws_cluster.up(
                experiment, cluster, confirm=confirm, dry_run=dry_run, write=lambda f: _written(f, out)
            )


def down(document: SpecDocument, *, confirm: Confirm) -> str:
    """End the spec's cluster; the artefact store stays as it is.

    Raises:
        UsageError: if the spec names no cluster, or one that is not ours to end.
        ResourceError: if it cannot be ended.
    """
    experiment, cluster = document.experiment, _cluster(document)
    name = cluster_name(cluster, experiment.name)
    match cluster:
        case LocalCluster():
            from cluster import machine

            with _as_resource_error():
                ended = machine.stop(name)
            return f"`{name}` is down" if ended else f"`{name}` was not running"
        case AddressCluster():
            raise UsageError(_not_ours(cluster))
        case KubernetesCluster():
            from cluster.kubectl import kubectl

            with _as_resource_error():
                where = ["--namespace", cluster.namespace, "--ignore-not-found"]
                said = kubectl(["delete", "rayclusters.ray.io", name, *where])
                said += kubectl(
                    ["delete", "rayjobs.ray.io,configmaps", "--selector", f"slimvit/cluster={name}", *where]
                )
            stays = f"\nThe volume claim `{name}-store` stays: it holds the store" if cluster.storage_class else ""
            return (said.strip() or f"`{name}` was not running") + stays
        case AwsCluster():
            from orchestrator import aws_cluster

            return aws_cluster.down(experiment, cluster, confirm=confirm)


def status(document: SpecDocument) -> str:
    """What the spec's cluster has and does.

    Raises:
        UsageError: if the spec names no cluster.
        ResourceError: if it does not answer.
    """
    experiment, cluster = document.experiment, _cluster(document)
    name = cluster_name(cluster, experiment.name)
    match cluster:
        case LocalCluster():
            from cluster import machine

            found = machine.running(name)
            if found is None:
                return f"`{name}` is not running; `slimvit cluster up {document.path}` starts it"
            return _seen(found.address)
        case AddressCluster():
            return _seen(cluster.address)
        case KubernetesCluster():
            from cluster.kubectl import kubectl

            with _as_resource_error():
                kinds = "rayclusters.ray.io,rayjobs.ray.io,pods"
                said = kubectl(
                    ["get", kinds, "--namespace", cluster.namespace, "--selector", "app.kubernetes.io/name=slimvit"]
                )
            return said.strip() or f"nothing of slimvit in the namespace `{cluster.namespace}`"
        case AwsCluster():
            from orchestrator import aws_cluster

            return aws_cluster.status(experiment, cluster)


def submit(
    document: SpecDocument, assignments: Sequence[str], *, dry_run: bool = False, out: Path | None = None
) -> str:
    """Send a run to the spec's own cluster.

    Raises:
        UsageError: if the spec names no cluster, or one that takes runs at an address only.
        ResourceError: if the cluster refuses, or does not answer.
    """
    experiment, cluster = document.experiment, _cluster(document)
    name = cluster_name(cluster, experiment.name)
    if isinstance(cluster, KubernetesCluster):
        return _submit_kubernetes(experiment, cluster, dry_run, out)
    if dry_run:
        raise UsageError(f"`--dry-run` writes manifests, and `cluster.kind: {cluster.kind}` has none")
    if isinstance(cluster, LocalCluster):
        from cluster import machine
        from orchestrator.execution import jobs

        found = machine.running(name)
        if found is None:
            raise ResourceError(f"`{name}` is not running; `slimvit cluster up {document.path}` starts it")
        return jobs.submit(document.path, assignments, found.dashboard)
    if isinstance(cluster, AwsCluster):
        raise UsageError(
            f"the dashboard of `{name}` is reached through SSH: run `slimvit cluster status {document.path}`, which "
            "prints the command for the tunnel, then `slimvit submit … --address http://127.0.0.1:8265`"
        )
    raise UsageError("a job needs the address of the dashboard: add `--address http://HOST:8265`")


def _cluster(document: SpecDocument) -> ClusterSpec:
    cluster = document.experiment.cluster
    if cluster is None:
        raise UsageError(
            f"{document.path} says nothing about a cluster. Add `cluster: {{kind: local}}` to it, or one of the other "
            "kinds (`docs/clusters.md`), or give `--set cluster='{kind: local}'`"
        )
    return cluster


def _up_local(name: str, cluster: LocalCluster, spec: Path) -> str:
    from cluster import machine

    with _as_resource_error():
        found = machine.start(name, cluster)
    return (
        f"`{name}` is up at {found.address}, dashboard {found.dashboard}\n"
        f"  slimvit run {spec}           run and watch\n"
        f"  slimvit submit {spec}        send and return\n"
        f"  slimvit cluster down {spec}  end it\n"
        f"Who opens the dashboard is asked for the token: `ray get-auth-token` prints it. Logs: {found.folder}"
    )


def _up_kubernetes(experiment: Experiment, cluster: KubernetesCluster, dry_run: bool, out: Path | None) -> str:
    from cluster import kubernetes

    _refuse(kubernetes.problems(experiment, cluster))
    return _applied("raycluster.yaml", as_yaml(*kubernetes.ray_cluster(experiment, cluster)), dry_run, out)


def _submit_kubernetes(experiment: Experiment, cluster: KubernetesCluster, dry_run: bool, out: Path | None) -> str:
    from cluster import kubernetes

    _refuse(kubernetes.problems(experiment, cluster))
    spec = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return _applied("rayjob.yaml", as_yaml(*kubernetes.ray_job(experiment, cluster, spec)), dry_run, out)


def _applied(file: str, manifests: str, dry_run: bool, out: Path | None) -> str:
    from cluster import kubectl

    if dry_run:
        return _written({file: manifests}, out)
    if not kubectl.available():
        place = out or Path()
        _written({file: manifests}, place)
        return (
            f"`kubectl` is not installed here, so nothing was started. {place / file} holds the manifests; where "
            f"`kubectl` is, run: kubectl apply -f {file}"
        )
    with _as_resource_error():
        return kubectl.apply(manifests).strip()


def _written(files: Files, out: Path | None) -> str:
    """Write files into a folder and say so, or return them as text."""
    if out is None:
        return "\n".join(f"# {name}\n{text.rstrip()}" for name, text in files.items())
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"`--out {out}`: {error.strerror or error}; name a folder that you may write") from error
    return "\n".join(f"{out / name}" for name in files)


def _seen(address: str) -> str:
    from cluster.view import look

    with _as_resource_error():
        view = look(address)
    lines = [f"{view.address}, dashboard {view.dashboard or 'none'}"]
    for node in view.nodes:
        lines.append(f"  node {node.address}  {_amounts(node.resources)}{'' if node.alive else '  (dead)'}")
    lines.append(f"  free at this moment: {_amounts(view.free)}")
    lines += [f"  job {job.name}  {job.state}" for job in view.jobs] or ["  no jobs"]
    return "\n".join(lines)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _not_ours(cluster: AddressCluster) -> str:
    return f"`{cluster.address}` was not started by slimvit, so it is neither started nor ended by it; use it as it is"


def _nothing_to_write(cluster: LocalCluster) -> str:
    cpus = cluster.cpus or "all"
    return f"a Ray head on this machine with {cpus} CPU cores would be started; it needs no files"


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ResourceError("this cluster cannot run the spec:\n" + "\n".join(f"  - {p}" for p in problems))


@contextmanager
def _as_resource_error() -> Iterator[None]:
    """What the lower floors raise becomes the command's own error; their messages have the way out already."""
    try:
        yield
    except (ClusterUnreachable, KubectlError, MachineError) as error:
        raise ResourceError(str(error)) from error


def address_of(experiment: Experiment) -> str | None:
    """Where a run joins its spec's cluster if no `--address` says so; `None` = start one for the time of the run."""
    cluster = experiment.cluster
    if isinstance(cluster, AddressCluster):
        return cluster.address
    if isinstance(cluster, LocalCluster):
        from cluster import machine

        found = machine.running(cluster_name(cluster, experiment.name))
        return None if found is None else found.address
    return None
