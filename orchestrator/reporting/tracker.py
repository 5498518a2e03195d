"""The record of one run of a plan: what happens goes into the journal at once, and from there to MLflow in a thread."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from cluster.storage import ArtifactStore
from orchestrator.execution.events import (
    Event,
    PlanGrew,
    StageFailed,
    StageFinished,
    StageFound,
    StageStarted,
    StageStopped,
)
from orchestrator.planning.plan import Plan
from orchestrator.reporting.journal import Entry, Journal
from orchestrator.reporting.record import identity
from orchestrator.reporting.recording import Record
from orchestrator.reporting.stored import finite
from orchestrator.reporting.trouble import trouble
from orchestrator.reporting.writer import Patience, Writer
from orchestrator.training.interface import Progress
from specs.address import is_remote
from specs.experiment import Experiment
from specs.secrets import redact

_LOG = logging.getLogger(__name__)


class Tracker:
    """Keeps the record of one run of a plan; its failure never fails the run, nor makes it wait.

    Args:
        uri: MLflow address, `sqlite:///FILE` or `http(s)://HOST:PORT`.
        experiment_name: MLflow experiment.
        plan: what is run; of a search, what is known of it now.
        experiment: the resolved spec.
        journals: folder of all journals on this machine; see `journal_home`.
        store: with it, a stage's artefacts are recorded as soon as it is finished, not only by `sync`.
        warn: told, in any thread, when the record cannot be written; once for each kind of trouble.
        patience: how often a server that fails is asked again.
    """

    def __init__(
        self,
        uri: str,
        experiment_name: str,
        plan: Plan,
        experiment: Experiment,
        *,
        journals: Path,
        store: ArtifactStore | None = None,
        warn: Callable[[str], None] = _LOG.warning,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._uri, self._plan, self._warn = uri, plan, warn
        self._told: set[str] = set()
        key = hashlib.sha256(json.dumps(identity(uri, experiment_name, plan)).encode()).hexdigest()[:16]
        self.journal = Journal(journals / f"{plan.experiment}-{key}")
        self._writer = Writer(
            self.journal,
            lambda: Record(uri, experiment_name, lambda: self._plan, experiment, store),
            self._complain,
            lasting=lambda error: trouble(uri, error).lasting,
            patience=patience,
        )

    def on_event(self, event: Event) -> None:
        """Note what happens during the run; returns at once."""
        now = time.time()
        match event:
            case StageStarted(stage=stage):
                self._note(Entry(now, "started", stage))
            case Progress(kind="epoch", stage=stage, epoch=epoch, values=values):
                self._note(Entry(now, "epoch", stage, epoch=epoch, values=finite(values)))
            case StageFinished(stage=stage) | StageFound(stage=stage):
                self._note(Entry(now, "finished", stage))
            case StageFailed(stage=stage, reason=reason):
                self._note(Entry(now, "failed", stage, reason=redact(reason)))
            case StageStopped(stage=stage, reason=reason):
                self._note(Entry(now, "stopped", stage, reason=redact(reason)))
            case PlanGrew(plan=plan):  # before anything happens to its stages, so their entries find it
                self._plan = plan
            case _:
                return

    def sync(self, plan: Plan, store: ArtifactStore, report: Path | None = None) -> bool:
        """Write what the journal holds, and complete the record from the store, as often as wanted; whether it is
        complete now, as far as the plan is finished.

        Args:
            plan: the plan this tracker was made for, or has grown to.
            store: where its stages are committed.
            report: HTML report to be kept with the record.
        """
        assert plan == self._plan, "a tracker records one plan"

        def complete(record: Record) -> None:
            if record.complete(store, report):
                self.journal.discard()

        return self._writer.call(complete)

    def close(self) -> None:
        """Note that the run ended, write what is under way, and end the thread."""
        if self.journal.source:
            self._note(Entry(time.time(), "ended"))
        self._writer.close()
        self.journal.close()

    def _note(self, entry: Entry) -> None:
        try:
            self.journal.append(entry)
        except OSError as error:
            where = self.journal.folder
            self._say(
                "journal",
                f"the journal {where} cannot be written: {error.strerror or error}. Curves of stages under way may "
                "lack points in MLflow; they are completed when the stage is finished",
            )
        self._writer.wake()

    def _complain(self, error: Exception) -> None:
        found = trouble(self._uri, error)
        self._say(
            found.problem,
            f"{found}. The run does not wait for it, and nothing is lost: what the record lacks is kept in "
            f"{self.journal.folder} and in the artefact store. It is tried again while the run lasts; after that, the "
            "same command, or `slimvit compare`, completes the record and computes nothing anew.",
        )

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn(redact(message))


def journal_home(store: str) -> Path:
    """Folder of the journals of runs on an artefact store: in the store if that is a folder (hidden, so that it is no
    artefact), else in the user's state folder on this machine (`~/.local/state/slimvit`).

    Args:
        store: its location.
    """
    if not is_remote(store):
        return Path(store) / ".journal"
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "slimvit" / "journal" / hashlib.sha256(store.encode()).hexdigest()[:16]
