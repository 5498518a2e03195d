"""`slimvit cluster …`: the sub-commands read their arguments and call one function of `orchestrator.clusters`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.spec_commands import load_spec

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start, end and look at the spec's cluster.")

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec file (YAML), with a `cluster`.")]
Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        default_factory=list,
        show_default=False,
        metavar="PATH=VALUE",
        help="Override a value, e.g. cluster.max_workers=2; may be repeated.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it costs money.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Start nothing; write what would be used.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for those files; none = print them.")]


@app.command()
def up(spec: Spec, assignments: Assignments, yes: Yes = False, dry_run: DryRun = False, out: Out = None) -> None:
    """Start the cluster that the spec describes, after checking everything that could be wrong."""
    from orchestrator import clusters

    document = load_spec(spec, assignments)
    typer.echo(clusters.up(document, confirm=lambda text: _confirm(text, yes), dry_run=dry_run, out=out))


@app.command()
def down(spec: Spec, assignments: Assignments, yes: Yes = False) -> None:
    """End it, and nothing else. The artefact store stays."""
    from orchestrator import clusters

    typer.echo(clusters.down(load_spec(spec, assignments), confirm=lambda text: _confirm(text, yes)))


@app.command()
def status(spec: Spec, assignments: Assignments) -> None:
    """Show its nodes, what they have, its dashboard and its jobs."""
    from orchestrator import clusters

    typer.echo(clusters.status(load_spec(spec, assignments)))


def _confirm(text: str, yes: bool) -> bool:
    typer.echo(text)
    return yes or typer.confirm("Go on?", default=False)
