"""`slimvit measure` in its two forms: the finished networks of an experiment, or any network."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from orchestrator.errors import UsageError
from orchestrator.exits import usage_errors
from orchestrator.options import AsJson, Assignments, Plain, RunAddress, Store

_OF_AN_EXPERIMENT = ("conditions", "combinations", "assignments", "store", "address", "plain")
_OF_A_MODEL = (
    *("model_args", "strategies", "batch_sizes", "only", "device"),
    *("precision", "compiled", "threads", "seconds", "as_json"),
)
"""Parameters of the two forms of `measure`."""


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
