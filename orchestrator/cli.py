"""The command `slimvit`. Each command only reads its arguments and calls one function; imports are made inside.

`slimvit --help` loads neither torch, ray nor mlflow.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import cluster_commands, job_commands
from orchestrator.errors import UsageError
from orchestrator.exits import ending, usage_errors

if TYPE_CHECKING:
    from specs.load import SpecDocument

app = typer.Typer(
    name="slimvit",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    help="One spec file, one honest comparison: component design, dynamic networks and knowledge distillation for "
    "Vision Transformers."
)
def _help(context: typer.Context) -> None:
    """Without a command: the help, as an answer and not as an error."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


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

_OF_AN_EXPERIMENT = ("conditions", "combinations", "assignments", "store", "address", "plain")
_OF_A_MODEL = (
    *("model_args", "strategies", "batch_sizes", "only", "device"),
    *("precision", "compiled", "threads", "seconds", "as_json"),
)
"""Parameters of the two forms of `measure`."""


@app.command()
def run(
    spec: Spec,
    assignments: Assignments,
    address: RunAddress = None,
    plain: Plain = False,
) -> None:
    """Run a spec from where it stands to the comparison. What is finished is not run again."""
    from orchestrator.run import run_experiment

    run_experiment(spec, assignments, address, plain)


@app.command()
def plan(
    spec: Spec,
    assignments: Assignments,
    as_json: AsJson = False,
    cluster: Annotated[
        bool | None, typer.Option("--cluster/--no-cluster", help="Estimate hours and cost; on if the spec names one.")
    ] = None,
) -> None:
    """Show the stages of a spec, what sharing them saves, and which are done."""
    from orchestrator.planning import describe
    from orchestrator.planning.make import make_plan

    document = load_spec(spec, assignments)
    made = make_plan(document)
    typer.echo(describe.as_json(made, document.experiment) if as_json else describe.as_text(made, document.experiment))
    if not as_json and (document.experiment.cluster is not None if cluster is None else cluster):
        from orchestrator import cluster_estimate

        typer.echo(cluster_estimate.as_text(made, document.experiment))


@app.command()
def explain(
    spec: Spec,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Label, or the beginning of the digest, as in `plan`.")],
    assignments: Assignments,
) -> None:
    """Say why a stage is to run: what differs from the nearest finished one."""
    from orchestrator.planning import describe
    from orchestrator.planning.make import make_plan

    document = load_spec(spec, assignments)
    typer.echo(describe.explain(make_plan(document), document.experiment, stage))


@app.command()
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


@app.command("import-results")
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


@app.command()
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


@app.command()
def measure(
    context: typer.Context,
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="A spec file, or an experiment's name; or --model.")
    ] = None,
    *,
    conditions: Annotated[
        list[str],
        typer.Option(
            default_factory=list,
            show_default=False,
            metavar="K=V,…",
            help="EXPERIMENT: measure under these, e.g. threads=1,batch_sizes=1;64; none = what is missing.",
        ),
    ],
    combinations: Annotated[
        list[str],
        typer.Option(
            "--combination",
            default_factory=list,
            show_default=False,
            metavar="NAME",
            help="EXPERIMENT: only this combination; repeatable.",
        ),
    ],
    assignments: Assignments,
    store: Store = None,
    address: RunAddress = None,
    plain: Plain = False,
    model: Annotated[str | None, typer.Option(help="A network in timm's registry.", metavar="NAME")] = None,
    model_args: Annotated[
        list[str],
        typer.Option(
            "--model-arg",
            default_factory=list,
            show_default=False,
            metavar="K=V",
            help="Argument of the network; repeatable.",
        ),
    ],
    strategies: Annotated[
        list[str],
        typer.Option(
            "--strategy", default_factory=list, show_default=False, metavar="NAME:K=V,…", help="Strategy; repeatable."
        ),
    ],
    batch_sizes: Annotated[
        list[int],
        typer.Option(
            "--batch-size",
            default_factory=lambda: [1, 64],
            show_default="1, 64",
            min=1,
            help="Batch size of the throughput; repeatable.",
        ),
    ],
    only: Annotated[
        list[str],
        typer.Option(
            default_factory=list, show_default=False, metavar="A,B", help="Metrics to take, e.g. params,macs."
        ),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="Time the compiled networks.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="all processors", help="Compute threads on CPU.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each timed quantity.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Measure without training: the finished networks of an experiment, or any network with --model."""
    if (experiment is None) == (model is None):
        raise UsageError("name either an experiment or a network: `slimvit measure EXPERIMENT` or `--model NAME`")
    if experiment is not None:
        refuse(context, _OF_A_MODEL, "goes with `--model`; conditions of an experiment are `--conditions KEY=VALUE,…`")
        from orchestrator.arguments import conditions as parse_conditions
        from orchestrator.remeasure import measure_experiment

        measure_experiment(
            experiment,
            parse_conditions(conditions),
            combinations=combinations,
            store=store,
            assignments=assignments,
            address=address,
            plain=plain,
        )
        return
    assert model is not None, "one of the two is named"
    refuse(context, _OF_AN_EXPERIMENT, "goes with an experiment, not with `--model`")
    from orchestrator import arguments
    from specs.metrics import METRICS
    from specs.model import ModelSpec
    from strategies import registry

    network = ModelSpec(model=model, args=arguments.pairs(model_args, "--model-arg"))
    options = [arguments.strategy(text, registry.resolver) for text in strategies]
    metrics = arguments.chosen(only, METRICS, "--only")
    arguments.chosen([device], ("auto", "cpu", "cuda"), "--device")
    arguments.chosen([precision], ("fp32", "bf16", "fp16"), "--precision")
    from orchestrator.measurement.command import as_json as rows_as_json
    from orchestrator.measurement.command import as_text, measure_model

    with usage_errors():
        rows = measure_model(
            network,
            options,
            batch_sizes=batch_sizes,
            device=device,
            precision=precision,
            compiled=compiled,
            threads=threads,
            seconds=seconds,
            only=metrics,
        )
    typer.echo(rows_as_json(rows) if as_json else as_text(rows))


@app.command()
def strategies(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this strategy.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the strategies that are installed, or show the options of one."""
    from orchestrator import strategy_help

    if as_json:
        typer.echo(strategy_help.as_json(name))
    else:
        typer.echo(strategy_help.overview() if name is None else strategy_help.details(name))


@app.command()
def schema() -> None:
    """Print the JSON Schema of spec files, with all installed strategies, for editors."""
    import json

    from specs.load import json_schema
    from strategies import registry

    typer.echo(json.dumps(json_schema(registry.resolver(name) for name in registry.names()), indent=2))


app.add_typer(cluster_commands.app, name="cluster")
for _command in job_commands.COMMANDS:
    app.command()(_command)


@app.command()
def ui(
    assignments: Assignments,
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="Spec whose record is shown.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the MLflow UI; 0 = any free one.")] = 5000,
    store: Store = None,
) -> None:
    """Open the MLflow UI on the record of all runs."""
    from orchestrator.reporting.ui import open_ui

    open_ui(spec, port=port, store=store, assignments=assignments)


@app.command()
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


store_app = typer.Typer(help="Look into an artefact store.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command("ls")
def store_ls(
    store: Store = None, everything: Annotated[bool, typer.Option("--all", help="List each artefact.")] = False
) -> None:
    """Show sizes by kind, and which experiments need what."""
    from orchestrator.keeping.inspect import show
    from orchestrator.keeping.roots import store_of

    show(store_of((), store), everything=everything, say=typer.echo)


@store_app.command("verify")
def store_verify(store: Store = None) -> None:
    """Read everything and say what is damaged; exit code 1 if anything is."""
    from orchestrator.keeping.inspect import verify
    from orchestrator.keeping.roots import store_of

    verify(store_of((), store), say=typer.echo)


@store_app.command("delete")
def store_delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Artefacts, e.g. stages/<digest>.")],
    store: Store = None,
) -> None:
    """Take artefacts out of the store; the next run computes anew what it needs."""
    from orchestrator.keeping.inspect import remove
    from orchestrator.keeping.roots import store_of

    remove(store_of((), store), names, say=typer.echo)


def refuse(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Refuse parameters that were given and do not belong to this form of a command.

    Raises:
        UsageError: naming the first of them.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in names and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"`{parameter.opts[0]}` {reason}")


def load_spec(spec: Path, assignments: list[str]) -> SpecDocument:
    """The spec, with the strategies that are installed."""
    from specs.load import load
    from strategies import registry

    return load(spec, assignments, resolver=registry.resolver)


def main() -> None:
    """Entry point of the command."""
    sys.exit(ending(lambda: app(prog_name="slimvit", standalone_mode=False)))


if __name__ == "__main__":
    main()
