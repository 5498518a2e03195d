"""`slimvit submit`, `status`, `logs`, `stop`: each reads its arguments and calls one function."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cluster_commands import Assignments, DryRun, Out, Spec

Address = Annotated[str, typer.Option(help="Ray cluster, e.g. http://head:8265.")]
OwnAddress = Annotated[
    str | None, typer.Option(help="Ray cluster, e.g. http://head:8265; none = the spec's `cluster`.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The id that `submit` printed.")]


def submit(
    spec: Spec, assignments: Assignments, address: OwnAddress = None, dry_run: DryRun = False, out: Out = None
) -> None:
    """Send a run to a Ray cluster and return. Sending the same spec again finds the same job."""
    from orchestrator import clusters
    from orchestrator.execution import jobs
    from specs.load import load
    from strategies import registry

    if address is not None and not dry_run:
        typer.echo(jobs.submit(spec, assignments, address))
    else:
        document = load(spec, assignments, resolver=registry.resolver)
        typer.echo(clusters.submit(document, assignments, dry_run=dry_run, out=out))


def status(job: JobId, address: Address) -> None:
    """Say how a submitted run stands."""
    from orchestrator.execution import jobs

    typer.echo(jobs.status(job, address))


def logs(
    job: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """Print what a submitted run has printed."""
    from orchestrator.execution import jobs

    for text in jobs.logs(job, address, follow):
        typer.echo(text, nl=False)


def stop(job: JobId, address: Address) -> None:
    """Stop a submitted run; submitting it again goes on from there."""
    from orchestrator.execution import jobs

    typer.echo(jobs.stop(job, address))


COMMANDS = (submit, status, logs, stop)
