"""`slimvit compare`: from a spec file or a name to a table, a file or a report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.storage import ArtifactStore
from orchestrator.errors import UsageError
from orchestrator.planning.plan import Plan
from orchestrator.reporting import report, table
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Comparison
from orchestrator.reporting.find import find_plan
from specs.experiment import Experiment


def compare_experiment(
    name_or_spec: str, assignments: Sequence[str], output_format: str, out: Path | None, store_root: Path | None
) -> str:
    """Compare an experiment's combinations.

    `table` also writes the report. A report is kept with the record in MLflow as well.

    Args:
        name_or_spec: a spec file, or the name of an experiment in the store.
        assignments: `PATH=VALUE` each, for a spec file.
        output_format: `table`, `json`, `csv` or `html`.
        out: file to write instead of printing; for `html` the default is `reports/<experiment>.html`.
        store_root: artefact store; `None` = the spec's.

    Returns:
        What is to be printed.

    Raises:
        UsageError: if there is no such experiment or the file cannot be written.
        StoreError: if an artefact is damaged.
    """
    plan, experiment, store = find_plan(name_or_spec, store_root, assignments)
    comparison = compare(plan, store)
    match output_format:
        case "json":
            return _print_or_write(table.to_json(comparison), out)
        case "csv":
            return _print_or_write(table.to_csv(comparison), out)
        case "html":
            path = write_report(comparison, plan, experiment, store, out)
            return f"{path}\n{_record(plan, experiment, store, path)}".rstrip()
        case _:
            return _print_or_write(_table(comparison, out), out) + _report_too(comparison, plan, experiment, store)


def write_report(
    comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore, out: Path | None = None
) -> Path:
    """Write the HTML report, by default to `reports/<experiment>.html`.

    Raises:
        UsageError: if the file cannot be written.
    """
    path = (out or Path("reports") / f"{plan.experiment}.html").absolute()
    _write(path, report.html(comparison, plan, experiment, store))
    return path


def _report_too(comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore) -> str:
    path = write_report(comparison, plan, experiment, store)
    return f"\nReport: {path}\n{_record(plan, experiment, store, path)}".rstrip()


def _record(plan: Plan, experiment: Experiment, store: ArtifactStore, path: Path) -> str:
    """Keep the report in MLflow; says where, or nothing after the warning that it could not be."""
    from orchestrator.reporting.tracking import Tracker

    uri = experiment.tracking.uri
    name = experiment.tracking.experiment or experiment.name
    tracker = Tracker(uri, name, plan, experiment, warn=lambda message: print(message, file=sys.stderr))
    complete = tracker.sync(plan, store, path)
    tracker.close()
    return f"Record: {uri}, experiment `{name}`" if complete else ""


def _table(comparison: Comparison, out: Path | None) -> str:
    """Coloured for a terminal, plain for everything else."""
    from rich.console import Console

    if out is not None or not sys.stdout.isatty():
        return table.text(comparison, table.WIDE)
    width = shutil.get_terminal_size().columns
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table.table(comparison, width))
    return capture.get()


def _print_or_write(text: str, out: Path | None) -> str:
    if out is None:
        return text.rstrip("\n")
    _write(out, text)
    return str(out.absolute())


def _write(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be written: {error.strerror or error}. Choose another with `--out`."
        ) from error
