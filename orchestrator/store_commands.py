"""`slimvit gc` and `slimvit store …`: what an artefact store holds, and what of it may go."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.options import Store

app = typer.Typer(help="Look into an artefact store.", rich_markup_mode=None, no_args_is_help=True)


def gc(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC…", help="Whose results stay: spec files, or names of experiments; none = all."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Also stays: an experiment's NAME, progress (of unfinished stages), history (earlier plans), or what "
            "was written within days (7d; 1d unless said otherwise). Repeatable.",
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only show what would go.")] = False,
    store: Store = None,
) -> None:
    """Delete what no named experiment needs. Shows what would go, with sizes; `--delete` does it."""
    from orchestrator.keeping.collect import collect

    collect(specs or [], keep or [], store, delete=delete, say=typer.echo)


@app.command()
def ls(
    store: Store = None, everything: Annotated[bool, typer.Option("--all", help="List each artefact.")] = False
) -> None:
    """Show sizes by kind, and which experiments need what."""
    from orchestrator.keeping import inspect
    from orchestrator.keeping.roots import store_of

    inspect.show(store_of((), store), everything=everything, say=typer.echo)


@app.command()
def verify(store: Store = None) -> None:
    """Read everything and say what is damaged; exit code 1 if anything is."""
    from orchestrator.keeping import inspect
    from orchestrator.keeping.roots import store_of

    inspect.verify(store_of((), store), say=typer.echo)


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Artefacts, e.g. stages/<digest>.")],
    store: Store = None,
) -> None:
    """Take artefacts out of the store; the next run computes anew what it needs."""
    from orchestrator.keeping import inspect
    from orchestrator.keeping.roots import store_of

    inspect.remove(store_of((), store), names, say=typer.echo)
