"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec file (YAML).")]
Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        default_factory=list,
        show_default=False,
        metavar="PATH=VALUE",
        help="Override a value, e.g. stages.0.training.epochs=3; may be repeated.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(help="Artefact store (folder or s3://BUCKET/PREFIX), if no spec names it.", metavar="PLACE"),
]
RunAddress = Annotated[str | None, typer.Option(help="Ray cluster to use instead of an embedded one.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live view.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
