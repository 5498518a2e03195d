"""The command `slimvit`: which commands there are. Each reads its arguments and calls one function, imported inside.

`slimvit --help` loads neither torch, ray nor mlflow.
"""

from __future__ import annotations

import sys

import typer

from orchestrator import (
    cluster_commands,
    job_commands,
    measure_command,
    result_commands,
    spec_commands,
    store_commands,
)
from orchestrator.exits import ending

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


app.command()(spec_commands.run)
app.command()(spec_commands.plan)
app.command()(spec_commands.explain)
app.command()(result_commands.compare)
app.command("import-results")(result_commands.import_results)
app.command()(result_commands.export)
app.command()(measure_command.measure)
app.command()(spec_commands.strategies)
app.command()(spec_commands.schema)
app.add_typer(cluster_commands.app, name="cluster")
for _command in job_commands.COMMANDS:
    app.command()(_command)
app.command()(result_commands.ui)
app.command()(store_commands.gc)
app.add_typer(store_commands.app, name="store")


def main() -> None:
    """Entry point of the command."""
    sys.exit(ending(lambda: app(prog_name="slimvit", standalone_mode=False)))


if __name__ == "__main__":
    main()
