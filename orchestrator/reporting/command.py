"""`slimvit compare`: from a spec file or a name to a table, a file or a report."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.storage import ArtifactStore
from orchestrator.errors import UsageError
from orchestrator.planning.plan import Plan
from orchestrator.reporting import figure, record, report, table
from orchestrator.reporting.claims import check, read_claim, setting_of
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import ClaimResult, Comparison
from orchestrator.reporting.find import find_plan, require_results
from orchestrator.reporting.latex import to_latex
from orchestrator.reporting.mark import RecordMark
from orchestrator.reporting.printed import answer_text, claim_text, effects_text
from orchestrator.reporting.published import load_published, with_published
from orchestrator.reporting.published_text import published_text
from orchestrator.reporting.query import Answer, answer
from orchestrator.reporting.side_by_side import side_by_side
from specs.experiment import Experiment

TEXTS = {"json": table.to_json, "csv": table.to_csv, "latex": to_latex}
"""Formats that are one text."""

FIGURES: tuple[figure.Format, ...] = ("png", "svg", "pdf")
"""Formats that are one picture."""


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Without the garbage collector, which would look through hundreds of thousands of values for cycles that they do
    not have: half of the time at 1,000 combinations."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_resting()
def compare_experiment(
    name_or_spec: str,
    assignments: Sequence[str],
    output_format: str,
    out: Path | None,
    store_root: str | Path | None,
    *,
    beside: Sequence[str] = (),
    cost: str = "macs",
    quality: str = "top1",
    where: str | None = None,
    best: str | None = None,
    effects: bool = False,
    claims: Sequence[str] = (),
    published: Sequence[str] = (),
) -> str:
    """Compare an experiment's combinations, or ask something of them.

    `table` also writes the report. A report is kept with the record in MLflow as well. A question (`where`, `best`,
    `effects`, `claims`) is answered instead of the table, as text or JSON.

    Args:
        name_or_spec: a spec file, or the name of an experiment in the store.
        assignments: `PATH=VALUE` each, for a spec file.
        output_format: `table`, `json`, `csv`, `latex`, `html`, or `png`, `svg`, `pdf` for the Pareto figure.
        out: file to write instead of printing; for `html` the default is `reports/<experiment>.html`.
        store_root: artefact store; `None` = the spec's.
        beside: more experiments, to stand in the same comparison.
        cost: metric of the Pareto front's level axis.
        quality: metric of its upright axis.
        where: conditions that combinations must satisfy, `macs<=1e9, latency_ms<=5`.
        best: metric that they are ranked by; `None` = top-1.
        effects: show main effects and interactions.
        claims: claims to check, `params<15M, top1>=83.2` each; in a report they stand beside everything else.
        published: names of imported numbers of others, to stand beside, in no ranking.

    Returns:
        What is to be printed.

    Raises:
        UsageError: if there is no such experiment or metric, nothing of it is finished, a question cannot be read,
            experiments cannot stand in one comparison, or the file cannot be written.
        StoreError: if an artefact is damaged.
    """
    found = [find_plan(name, store_root, assignments) for name in (name_or_spec, *beside)]
    for one in found:
        require_results(one)
    plan, experiment, store = found[0]
    if beside:
        plan = side_by_side(found)
    read = [read_claim(text) for text in claims]  # a slip of the pen is told before anything is read
    others = [load_published(name, store) for name in published]
    comparison = with_published(compare(plan, store, cost=cost, quality=quality), others, plan)
    if output_format == "html" and read and not beside:
        checked = [check(claim, comparison, setting_of(plan)) for claim in read]
        comparison, claims = comparison.model_copy(update={"claims": (*comparison.claims, *checked)}), ()
    if where is not None or best is not None or effects or claims:
        if output_format not in ("table", "json"):
            raise UsageError(
                f"`--where`, `--best`, `--effects` and `--claim` are answered with `--format table` or json, not "
                f"{output_format}."
            )
        asked = answer(comparison, where, best) if where is not None or best is not None else None
        checked = [check(claim, comparison, setting_of(plan)) for claim in read]
        as_json = output_format == "json"
        return _print_or_write(_answers(comparison, asked, effects, checked, as_json), out)
    if output_format in TEXTS:
        return _print_or_write(TEXTS[output_format](comparison), out)
    if output_format in FIGURES:
        return _write_figure(comparison, experiment, output_format, out)
    if beside:
        if output_format == "html":
            raise UsageError("a report is of one experiment; name one, or choose `--format` table, json, csv or latex.")
        return _print_or_write(_table(comparison, out), out)
    if output_format == "html":
        path = write_report(comparison, plan, experiment, store, out)
        return f"{path}\n{_record(comparison, plan, experiment, store, path)}".rstrip()
    said = _print_or_write(_table(comparison, out), out)
    path = write_report(comparison, plan, experiment, store)
    return f"{said}\nReport: {path}\n{_record(comparison, plan, experiment, store, path)}".rstrip()


def _answers(
    comparison: Comparison, asked: Answer | None, effects: bool, checked: Sequence[ClaimResult], as_json: bool
) -> str:
    if as_json:
        parts: dict[str, object] = {}
        if asked is not None:
            parts["answer"] = asked.model_dump(mode="json")
        if effects:
            parts["effects"] = [e.model_dump(mode="json") for e in comparison.effects]
        if checked:
            parts["claims"] = [c.model_dump(mode="json") for c in checked]
        return json.dumps(parts, indent=2) + "\n"
    texts = [answer_text(asked, comparison)] if asked is not None else []
    texts += [effects_text(comparison)] if effects else []
    texts += [claim_text(result) for result in checked]
    return "\n".join(texts)


def write_report(
    comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore, out: Path | None = None
) -> Path:
    """Write the HTML report, by default to `reports/<experiment>.html`; one that was made from the same stays.

    Raises:
        UsageError: if the file cannot be written.
    """
    path = (out or Path("reports") / f"{plan.experiment}.html").absolute()
    if not report.is_current(path, comparison, experiment):
        _write(path, report.html(comparison, plan, experiment, store))
    return path


def _write_figure(comparison: Comparison, experiment: Experiment, output_format: str, out: Path | None) -> str:
    """Write the Pareto figure, by default to `reports/<experiment>.<format>`; says where."""
    kind = next(known for known in FIGURES if known == output_format)
    baseline = experiment.measurement.baseline
    path = (out or Path("reports") / f"{comparison.experiment}.{kind}").absolute()
    _write(path, figure.draw(comparison, kind, baseline.model if baseline else None))
    return str(path)


def _record(comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore, path: Path) -> str:
    """Keep the report in MLflow; says where, or nothing after the warning that it could not be."""
    uri = experiment.tracking.uri
    name = experiment.tracking.experiment or experiment.name
    said = f"Record: {uri}, experiment `{name}`"
    mark, fingerprint = RecordMark(plan, experiment, store), record.fingerprint(table.to_json(comparison), path)
    if mark.complete(fingerprint):
        return said
    from orchestrator.reporting.tracker import Tracker, journal_home

    tracker = Tracker(
        uri,
        name,
        plan,
        experiment,
        journals=journal_home(store.location),
        warn=lambda message: print(message, file=sys.stderr),
    )
    complete = tracker.sync(plan, store, path)
    tracker.close()
    if not complete:
        return ""
    if all(r.status in ("measured", "stopped") for r in comparison.rows):
        mark.set(fingerprint)
    return said


def _table(comparison: Comparison, out: Path | None) -> str:
    """Coloured for a terminal, plain for everything else."""
    from rich.console import Console

    others = published_text(comparison)
    others = f"\n{others}" if others else ""
    if out is not None or not sys.stdout.isatty():
        return table.text(comparison, table.WIDE) + others
    width = shutil.get_terminal_size().columns
    console = Console(width=width, emoji=False)
    with console.capture() as capture:
        console.print(table.table(comparison, width))
    return capture.get() + others


def _print_or_write(text: str, out: Path | None) -> str:
    if out is None:
        return text.rstrip("\n")
    _write(out, text)
    return str(out.absolute())


def _write(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be written: {error.strerror or error}. Choose another with `--out`."
        ) from error
