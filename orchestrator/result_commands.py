"""`slimvit compare`, `import-results`, `export`, `ui`: what is done with results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.options import Assignments, Store


def compare(
    experiments: Annotated[
        list[str],
        typer.Argument(metavar="EXPERIMENT…", help="A spec file, or an experiment's name; several stand side by side."),
    ],
    assignments: Assignments,
    claims: Annotated[
        list[str],
        typer.Option(
            "--claim",
            default_factory=list,
            show_default=False,
            metavar="CONDITIONS",
            help="Check a claim: 'params<15M, top1>=83.2, throughput_ratio>=2.4'; the first condition is the budget, "
            "the others must hold for the most accurate combination under it. Repeatable.",
        ),
    ],
    output_format: Annotated[
        str, typer.Option("--format", help="table, json, csv, latex, html, png, svg or pdf.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing.", metavar="FILE")] = None,
    store: Store = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITIONS", help="Show the combinations that satisfy these: 'macs<=1.2G, latency_ms<=5'."
        ),
    ] = None,
    best: Annotated[str | None, typer.Option(metavar="METRIC", help="Rank them by this metric.")] = None,
    effects: Annotated[
        bool, typer.Option("--effects", help="Show what each label does, and each pair beyond the sum of both.")
    ] = False,
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Put imported numbers of others beside, in no ranking; repeatable."),
    ] = None,
    quality: Annotated[str, typer.Option(metavar="METRIC", help="Upright axis of the Pareto front.")] = "top1",
    cost: Annotated[str, typer.Option(metavar="METRIC", help="Its other axis.")] = "macs",
) -> None:
    """Compare the finished combinations of an experiment: accuracy against cost."""
    from orchestrator.arguments import chosen
    from orchestrator.reporting.command import compare_experiment

    chosen([output_format], ("table", "json", "csv", "latex", "html", "png", "svg", "pdf"), "--format")
    typer.echo(
        compare_experiment(
            experiments[0],
            assignments,
            output_format,
            out,
            store,
            beside=experiments[1:],
            cost=cost,
            quality=quality,
            where=where,
            best=best,
            effects=effects,
            claims=claims,
            published=published or (),
        )
    )


def import_results(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="timm's results-*.csv and benchmark-infer-*.csv.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name for `compare --published`.")],
    store: Store = None,
) -> None:
    """Import numbers that others published, to stand beside one's own and never be ranked with them."""
    from orchestrator.reporting.published import import_results as import_files
    from orchestrator.storage import open_store
    from specs.experiment import StorageSpec

    typer.echo(import_files(files, name, open_store(store or StorageSpec())))


def export(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A spec file, or an experiment's name.")],
    combination: Annotated[str, typer.Argument(metavar="COMBINATION", help="Name as in `compare`.")],
    output_format: Annotated[str, typer.Option("--format", help="safetensors, torchscript, onnx or pt2.")],
    assignments: Assignments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist yet.", metavar="PATH")] = None,
    store: Store = None,
) -> None:
    """Write a combination's network as a usable model, checked against the original on real images."""
    from orchestrator.arguments import chosen
    from orchestrator.export import export_combination

    chosen([output_format], ("safetensors", "torchscript", "onnx", "pt2"), "--format")
    typer.echo(
        export_combination(experiment, combination, output_format, out=out, store=store, assignments=assignments)
    )


def ui(
    assignments: Assignments,
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="Spec whose record is shown.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the MLflow UI; 0 = any free one.")] = 5000,
    store: Store = None,
) -> None:
    """Open the MLflow UI on the record of all runs."""
    from orchestrator.reporting.ui import open_ui

    open_ui(spec, port=port, store=store, assignments=assignments)
