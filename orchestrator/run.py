"""`slimvit run`: from a spec file to the comparison, from wherever the last run left it."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from cluster.storage import ArtifactStore
from cluster.token import show_token
from orchestrator.clusters import address_of
from orchestrator.errors import Interrupted, PlanError, StageFailed, StoreError
from orchestrator.execution import driver
from orchestrator.execution.events import Event, PlanGrew, RunStarted
from orchestrator.execution.interrupt import StopOnSignal
from orchestrator.execution.live import excluded_text, make_view
from orchestrator.execution.steering import Steering
from orchestrator.keeping.tidy import discard_damaged, forget_leases
from orchestrator.planning import failed
from orchestrator.planning.describe import as_text
from orchestrator.planning.feasible import cannot_start
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan
from orchestrator.planning.status import finished, to_run
from orchestrator.planning.stored import no_room
from orchestrator.reporting.mark import RecordMark
from orchestrator.reporting.record import fingerprint
from orchestrator.reporting.table import WIDE
from orchestrator.storage import commit_texts, open_store
from specs.experiment import Experiment
from specs.load import load
from specs.words import counted
from strategies import registry

if TYPE_CHECKING:
    from orchestrator.reporting.tracker import Tracker

MOST_STAGES_SHOWN = 60
"""A larger plan's tree is not printed before the run; `slimvit plan` shows it."""


def run_experiment(spec: Path, assignments: Sequence[str], address: str | None, plain: bool) -> None:
    """Run what is not finished, keep the record, and show the comparison.

    A finished spec runs nothing and loads neither Ray, torch nor (if its record is complete) MLflow.

    Args:
        spec: the spec file.
        assignments: `PATH=VALUE` each.
        address: of a running Ray cluster; `None` = the spec's `cluster` if that runs, else one is started here.
        plain: plain lines instead of the live view.

    Raises:
        SpecProblems, PlanError: if the spec is wrong.
        StoreError: if the store cannot be written or an artefact is damaged.
        ResourceError: if the cluster lacks what the spec asks for.
        StageFailed: if a stage failed; everything that could finish is finished and shown before.
        Interrupted: after Ctrl-C; the same command goes on.
    """
    document = load(spec, assignments, resolver=registry.resolver)
    plan, experiment = make_plan(document), document.experiment
    address = address or address_of(experiment)
    store = open_store(experiment.storage)
    control = None
    if experiment.search is not None:
        from orchestrator.search.control import SearchControl

        _prepare(store)
        show_token(starting=address is None)  # proposing loads Ray
        control = SearchControl(document, store)
        plan = control.plan
    # A file or a pipe has no width: there the table keeps all of its columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE, emoji=False)
    record = RecordMark(plan, experiment, store)
    done = finished(plan, store)
    if control is None and (to_run(plan, done) or not record.complete()):  # else all was well, and is only read
        _discard_damaged(plan, store, done, console)
        forget_leases(plan, store, done)
    missing = to_run(plan, finished(plan, store)) if control is None else control.wanted()
    if control is None:
        obstacles = cannot_start(plan, missing, experiment.resources)
    else:
        obstacles = control.obstacles()
    if obstacles:
        raise PlanError(
            f"{spec} cannot run:\n" + "\n".join(f"  - {reason}" for reason in dict.fromkeys(obstacles.values()))
        )
    for reason in no_room(plan, missing, store):
        raise StoreError(reason)
    _prepare(store)
    _show_plan(plan, experiment, console)
    console.print(f"MLflow  {experiment.tracking.uri}\nStore   {store.location}", soft_wrap=True)
    open_search = control is not None and not control.exhausted
    if missing or open_search:
        record.invalidate()
    tracker = None if record.complete() else _tracker(plan, experiment, store, console)
    summary = driver.RunSummary()
    recorded = tracker is None
    kept = ""

    def on_event(event: Event) -> None:
        nonlocal kept
        if isinstance(event, RunStarted):  # a run that is refused leaves the plan before it the newest
            kept = commit_plan(plan, experiment, store)
        elif isinstance(event, PlanGrew):  # whoever asks by name, `gc` too, is to know of every trial
            shorter, kept = kept, commit_plan(event.plan, experiment, store)
            if shorter != kept:
                store.delete(shorter)
        if tracker is not None:
            tracker.on_event(event)

    try:
        if missing or open_search:
            summary = watched(plan, experiment, store, address, plain, console, on_event, control)
        else:
            commit_plan(plan, experiment, store)
        if control is not None:
            plan = control.plan
            record = RecordMark(plan, experiment, store)
            commit_plan(plan, experiment, store)
        if not summary.interrupted:
            report, shown = _show_comparison(plan, experiment, store, summary, console)
            if tracker is not None:
                recorded = tracker.sync(plan, store, report)
                if recorded and not summary.failed:
                    record.set(shown)
    finally:
        if tracker is not None:
            tracker.close()
    for node, reason in summary.excluded.items():
        console.print(f"[yellow]warning:[/] {escape(excluded_text(node, reason))}", soft_wrap=True)
    if recorded:
        console.print(f"Record: slimvit ui {shlex.quote(str(spec))}", soft_wrap=True)
    elif not summary.interrupted:
        console.print(
            f"Record: MLflow at {experiment.tracking.uri} does not have everything yet (see the warning). Nothing is "
            "lost: once it can be written, the same command completes it and computes nothing anew.",
            soft_wrap=True,
            markup=False,
        )
    raise_if_unfinished(plan, summary)


def _discard_damaged(plan: Plan, store: ArtifactStore, done: Collection[str], console: Console) -> None:
    """Take out what no run may go on from, and say so."""
    for digest, problem in discard_damaged(plan, store, done).items():
        console.print(
            f"[yellow]warning:[/] {escape(plan.stages[digest].label)} (stages/{digest}) is damaged and was deleted: "
            f"{escape(problem)}. What still needs it computes it anew",
            soft_wrap=True,
        )


def _prepare(store: ArtifactStore) -> None:
    """Make the store, or refuse.

    Raises:
        StoreError: if it cannot be written.
    """
    try:
        store.prepare()
    except OSError as error:
        raise StoreError(str(error)) from error


def commit_plan(plan: Plan, experiment: Experiment, store: ArtifactStore) -> str:
    """Keep plan and resolved spec in the store, so that results can be found by the experiment's name.

    The artefact is `plans/<experiment>/<UTC time>-<digest>`; repeating the latest run adds none.

    Raises:
        StoreError: if the store cannot be written.

    Returns:
        The artefact's name.
    """
    files = {"plan.json": plan.model_dump_json(indent=1), "experiment.json": experiment.model_dump_json(indent=1)}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    earlier = list(store.names(f"plans/{plan.experiment}"))
    if earlier and earlier[-1].endswith(f"-{digest}"):
        return earlier[-1]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    name = f"plans/{plan.experiment}/{now}-{digest}"
    try:
        commit_texts(store, name, files)
    except OSError as error:
        raise StoreError(f"the plan cannot be kept in the store `{store.location}`: {error}") from error
    return name


def watched(
    plan: Plan,
    experiment: Experiment,
    store: ArtifactStore,
    address: str | None,
    plain: bool,
    console: Console,
    on_event: Callable[[Event], None] = lambda event: None,
    steering: Steering | None = None,
) -> driver.RunSummary:
    """Run the missing stages under a person's eyes; `on_event` is told everything too."""
    view = make_view(plan, console, plain=plain)

    def tell(event: Event) -> None:
        view.on_event(event)
        on_event(event)

    with StopOnSignal(on_first=view.stopping) as stop, view:
        return driver.run(
            plan, experiment, store=store, address=address, on_event=tell, should_stop=stop, steering=steering
        )


def _tracker(plan: Plan, experiment: Experiment, store: ArtifactStore, console: Console) -> Tracker:
    from orchestrator.reporting.tracker import Tracker, journal_home

    def warn(message: str) -> None:
        console.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)

    name = experiment.tracking.experiment or experiment.name
    journals = journal_home(store.location)
    return Tracker(experiment.tracking.uri, name, plan, experiment, journals=journals, store=store, warn=warn)


def _show_plan(plan: Plan, experiment: Experiment, console: Console) -> None:
    if len(plan.stages) <= MOST_STAGES_SHOWN:
        console.print(as_text(plan, experiment), markup=False, soft_wrap=True)
    else:
        console.print(
            f"{counted(len(plan.combinations), 'combination')}, {counted(len(plan.stages), 'stage')} instead of "
            f"{plan.stages_alone()}; `slimvit plan` shows them"
        )


def _show_comparison(
    plan: Plan, experiment: Experiment, store: ArtifactStore, summary: driver.RunSummary, console: Console
) -> tuple[Path, str]:
    """Print the table, write the report; returns the report's path, and what both were made from."""
    from orchestrator.reporting.command import write_report
    from orchestrator.reporting.compare import compare
    from orchestrator.reporting.table import table, to_json

    comparison = compare(plan, store, failures={**failed.reasons(plan, store), **summary.failed})
    console.print(table(comparison, console.width))
    report = write_report(comparison, plan, experiment, store)
    console.print(f"Report: {report}", soft_wrap=True)
    return report, fingerprint(to_json(comparison), report)


def raise_if_unfinished(plan: Plan, summary: driver.RunSummary) -> None:
    """End as the stages did.

    Raises:
        Interrupted, StageFailed: unless every stage is finished.
    """
    if summary.interrupted:
        finished = len(summary.done_before) + len(summary.finished) + len(summary.found)
        raise Interrupted(
            f"stopped with {finished} of {len(plan.stages)} stages finished; "
            "the progress of the others is saved. Run the same command to go on"
        )
    if summary.failed:
        reasons = "\n".join(f"  {plan.stages[d].label} ({d[:10]}): {reason}" for d, reason in summary.failed.items())
        skipped = f"; {len(summary.skipped)} that need them were skipped" if summary.skipped else ""
        raise StageFailed(
            f"{len(summary.failed)} of {len(plan.stages)} stages failed{skipped}. What could finish is finished.\n"
            f"{reasons}\nRun the same command to try them again"
            + (f". Ray's logs are in {summary.logs}" if summary.logs else "")
        )
