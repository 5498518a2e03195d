"""`slimvit run`, `plan`, `explain`, `strategies`, `schema`: what is done with a spec, and what may stand in one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.options import AsJson, Assignments, Plain, RunAddress, Spec

if TYPE_CHECKING:
    from specs.load import SpecDocument


def run(
    spec: Spec,
    assignments: Assignments,
    address: RunAddress = None,
    plain: Plain = False,
) -> None:
    """Run a spec from where it stands to the comparison. What is finished is not run again."""
    from orchestrator.run import run_experiment

    run_experiment(spec, assignments, address, plain)


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


def schema() -> None:
    """Print the JSON Schema of spec files, with all installed strategies, for editors."""
    import json

    from specs.load import json_schema
    from strategies import registry

    typer.echo(json.dumps(json_schema(registry.resolver(name) for name in registry.names()), indent=2))


def load_spec(spec: Path, assignments: list[str]) -> SpecDocument:
    """The spec, with the strategies that are installed."""
    from specs.load import load
    from strategies import registry

    return load(spec, assignments, resolver=registry.resolver)
