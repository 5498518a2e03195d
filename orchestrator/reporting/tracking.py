"""The record in MLflow. The only file that imports mlflow.

The record follows the run live (`Tracker.on_event`) and is completed from the artefact store (`Tracker.sync`), so that
whatever the live part missed is made up for. What the server has already is not sent again: runs are found by tags,
parameters by name, metric values by name and step.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import ArtifactStore
from orchestrator.execution.events import (
    Event,
    PlanGrew,
    StageFailed,
    StageFinished,
    StageStarted,
    StageStopped,
)
from orchestrator.planning.plan import Combination, MeasureStage, Plan
from orchestrator.reporting import record
from orchestrator.reporting.background import Background
from orchestrator.reporting.compare import compare
from orchestrator.reporting.results import read_results, rows_by_column
from orchestrator.reporting.stored import finite, read_history, read_result, stage_folder
from orchestrator.reporting.table import to_csv, to_json
from orchestrator.training.interface import Progress
from specs.experiment import Experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_LOG = logging.getLogger(__name__)
_BATCH = 500
"""Values in one request; MLflow takes at most 1,000."""
_TAGS_AND_PARAMS = 100
"""Tags or parameters in one request; MLflow takes no more."""

_REASON = "slimvit.reason"
"""Tag: why a run failed, or was given up."""

PLAN, KIND, KEY, RECORDED = "slimvit.plan", "slimvit.kind", "slimvit.key", "slimvit.recorded"
"""Tags: digest of the plan; `experiment`, `combination` or `stage`; which one; what of the store is recorded."""


class Tracker:
    """Writes the record of one run of a plan, in a thread of its own; its failure never fails the run.

    Args:
        uri: MLflow address, `sqlite:///FILE` or `http(s)://HOST:PORT`.
        experiment_name: MLflow experiment.
        plan: what is run.
        experiment: the resolved spec.
        store: with it, a stage's artefacts are recorded as soon as it is finished, not only by `sync`.
        warn: told once, in the thread, when the record cannot be written.
    """

    def __init__(
        self,
        uri: str,
        experiment_name: str,
        plan: Plan,
        experiment: Experiment,
        *,
        store: ArtifactStore | None = None,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        def complain(error: Exception) -> None:
            warn(
                f"MLflow at {uri} cannot be written: {error}. The run goes on; running the same command again, or "
                "`slimvit compare`, completes the record from the artefact store."
            )

        self._plan = plan
        self._store = store
        self._background = Background(lambda: Record(uri, experiment_name, self._plan, experiment), complain)

    def on_event(self, event: Event) -> None:
        """Record what happens during the run; returns at once."""
        store = self._store
        match event:
            case StageStarted(stage=stage):
                self._background.post(lambda r: r.stage_started(stage))
            case Progress(kind="epoch", stage=stage, epoch=epoch, values=values):
                self._background.post(lambda r: r.epoch(stage, epoch, values))
            case StageFinished(stage=stage):
                self._background.post(lambda r: r.stage_finished(stage, store))
            case StageFailed(stage=stage, reason=reason):
                self._background.post(lambda r: r.stage_failed(stage, reason))
            case PlanGrew(plan=plan):
                self._plan = plan
                self._background.post(lambda r: r.grow(plan))
            case StageStopped(stage=stage, reason=reason):
                self._background.post(lambda r: r.stage_stopped(stage, reason))
            case _:
                return

    def sync(self, plan: Plan, store: ArtifactStore, report: Path | None = None) -> bool:
        """Complete the record from the store, as often as wanted; whether it is complete now.

        Args:
            plan: the plan this tracker was made for.
            store: where its stages are committed.
            report: HTML report to be kept with the record.
        """
        assert plan == self._plan, "a tracker records one plan"
        return self._background.call(lambda r: r.complete(store, report))

    def close(self) -> None:
        """Write what is under way and mark what did not finish as stopped."""
        self._background.post(Record.suspend)
        self._background.close()


class Record:
    """The runs of one plan on an MLflow server. Blocking; used from one thread.

    Raises:
        Exception: whatever the MLflow client raises when the server cannot be reached or written.
    """

    def __init__(self, uri: str, experiment_name: str, plan: Plan, experiment: Experiment) -> None:
        self._client = _connect(uri)
        self._plan = plan
        self._experiment = experiment
        self._digest = record.plan_digest(plan)
        self._owners = record.owners(plan)
        self._experiment_id = _experiment_id(self._client, uri, experiment_name)
        self._runs: dict[str, _Run] = {}
        for found in self._existing():
            key = f"{found.data.tags[KIND]}:{found.data.tags[KEY]}"
            self._runs.setdefault(key, _Run(self._client, found, fresh=False))
        self._parent = self._run("experiment", plan.experiment, plan.experiment, parent=None)
        self._parent.log_parameters(record.experiment_parameters(plan, experiment))

    def stage_started(self, digest: str) -> None:
        """A stage runs, for the first time or again: the run is open, and so is its combination's."""
        for run in (self._parent, self._combination_run(self._owners[digest]), self._stage_run(digest)):
            run.set_status("RUNNING")

    def epoch(self, digest: str, epoch: int, values: Mapping[str, float]) -> None:
        """One point of each training curve."""
        self._stage_run(digest).log_metrics(values, step=epoch)

    def stage_finished(self, digest: str, store: ArtifactStore | None) -> None:
        """A stage's artefact is committed."""
        if store is None:
            self._stage_run(digest).set_status("FINISHED")
        else:
            self.stage(digest, store)

    def stage_failed(self, digest: str, reason: str) -> None:
        """A stage gave up, and with it every combination that needs it."""
        self._stage_run(digest).fail(reason)
        for combination in self._plan.combinations:
            if digest in combination.stages:
                label = self._plan.stages[digest].label
                self._combination_run(combination).fail(f"`{label}` failed: {reason}")

    def stage_stopped(self, digest: str, reason: str) -> None:
        """A search gave a stage up."""
        if f"stage:{digest}" in self._runs:
            self._stage_run(digest).stop(reason)

    def grow(self, plan: Plan) -> None:
        """A search has come further; runs that are there stay where they are."""
        self._plan = plan
        self._owners = {**record.owners(plan), **self._owners}

    def stage(self, digest: str, store: ArtifactStore) -> bool:
        """Complete the run of a finished stage from its artefact; `False` if the stage is not finished."""
        known = self._runs.get(f"stage:{digest}")
        if known is not None and known.tags.get(RECORDED) == digest:
            return True
        folder = stage_folder(store, digest)
        if folder is None:
            return False
        run = self._stage_run(digest)
        stage = self._plan.stages[digest]
        if not isinstance(stage, MeasureStage):
            for epoch in read_history(folder):
                run.log_metrics(epoch.values, step=epoch.epoch)
            result = read_result(folder)
            final = finite(result | result.get("metrics", {}))
            run.log_metrics({f"final.{name}": value for name, value in final.items()}, step=0)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                run.log_file(path, "checkpoint" if path.name in ("model.safetensors", "model.json") else None)
        run.finish(recorded=digest)
        return True

    def complete(self, store: ArtifactStore, report: Path | None) -> None:
        """Bring every run up to what the store holds."""
        comparison = compare(self._plan, store)
        fingerprint = record.fingerprint(to_json(comparison), report)
        if self._parent.tags.get(RECORDED) == fingerprint and self._parent.status == "FINISHED":
            return
        for digest in self._plan.stages:
            self.stage(digest, store)
        rows = rows_by_column(self._plan, read_results(self._plan, store))
        for combination in self._plan.combinations:
            keyed = rows.get((combination.name, combination.seed))
            if keyed is not None:
                run = self._combination_run(combination)
                run.log_metrics({key: r.value for key, r in keyed.items() if r.value is not None}, step=0)
                run.log_text("rows.json", json.dumps([r.model_dump(mode="json") for r in keyed.values()], indent=1))
                run.tag(self._stages_of(combination))
                run.finish(recorded=combination.measured_by)
        files = {
            "spec.yaml": record.resolved_spec(self._experiment),
            "plan.json": self._plan.model_dump_json(indent=1),
            "environment.json": json.dumps(record.environment(), indent=1),
            "comparison.json": to_json(comparison),
            "comparison.csv": to_csv(comparison),
        }
        for name, text in files.items():
            self._parent.log_text(name, text)
        if report is not None:
            self._parent.log_file(report, None)
        open_ones = {(c.name, c.seed): c for c in self._plan.combinations if (c.name, c.seed) not in rows}
        for combination in [c for c in open_ones.values() if c.name in self._plan.stopped]:
            del open_ones[combination.name, combination.seed]
            self._combination_run(combination).stop(self._plan.stopped[combination.name])
        if not open_ones:
            self._parent.finish(recorded=fingerprint)
        elif any(run.status == "FAILED" for run in self._runs.values()):
            self._parent.fail("at least one stage failed")

    def suspend(self) -> None:
        """The run ends: what is still open was stopped, and can be gone on with."""
        for run in self._runs.values():
            if run.status == "RUNNING":
                run.set_status("KILLED")

    def _existing(self) -> Iterable[Run]:
        """All runs of this plan, oldest first."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{PLAN}` = '{self._digest}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _combination_run(self, combination: Combination) -> _Run:
        key = f"{combination.name} #{combination.seed}"
        several = len({c.seed for c in self._plan.combinations}) > 1
        title = f"{combination.name}, seed {combination.seed}" if several else combination.name
        run = self._run("combination", key, title, parent=self._parent.id)
        run.log_parameters(record.combination_parameters(self._plan, combination))
        return run

    def _stage_run(self, digest: str) -> _Run:
        key = f"stage:{digest}"
        if key not in self._runs:
            parent = self._combination_run(self._owners[digest])
            self._run("stage", digest, self._plan.stages[digest].label, parent=parent.id)
        run = self._runs[key]
        run.log_parameters(record.stage_parameters(self._plan, digest))
        return run

    def _stages_of(self, combination: Combination) -> dict[str, str]:
        """Which runs hold the stages of a combination: as tag for programs, as a note with links for people."""
        runs = {self._plan.stages[d].label: self._runs[f"stage:{d}"].id for d in combination.stages}
        links = "\n".join(
            f"* [{label}](#/experiments/{self._experiment_id}/runs/{run_id})" for label, run_id in runs.items()
        )
        return {"slimvit.stages": json.dumps(runs), "mlflow.note.content": f"Stages, in order:\n\n{links}"}

    def _run(self, kind: str, key: str, title: str, parent: str | None) -> _Run:
        found = self._runs.get(f"{kind}:{key}")
        if found is None:
            tags = {PLAN: self._digest, KIND: kind, KEY: key} | ({"mlflow.parentRunId": parent} if parent else {})
            created = self._client.create_run(self._experiment_id, run_name=title, tags=tags)
            found = self._runs[f"{kind}:{key}"] = _Run(self._client, created, fresh=True)
        return found


class _Run:
    """One MLflow run, with what the server is known to hold of it."""

    def __init__(self, client: MlflowClient, run: Run, *, fresh: bool) -> None:
        self._client = client
        self.id: str = run.info.run_id
        self.status: str = run.info.status
        self.tags: dict[str, str] = dict(run.data.tags)
        self._parameters = set(run.data.params)
        self._metrics = set(run.data.metrics)
        self._points: set[tuple[str, int]] | None = set() if fresh else None

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        named = {_name(key): value for key, value in parameters.items()}
        new = [Param(key, value) for key, value in named.items() if key not in self._parameters]
        for i in range(0, len(new), _TAGS_AND_PARAMS):
            self._client.log_batch(self.id, params=new[i : i + _TAGS_AND_PARAMS])
        self._parameters |= named.keys()

    def log_metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Send the finite values that the server does not have at this step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {_name(key): value for key, value in finite(dict(values)).items()}
        new = [Metric(key, value, now, step) for key, value in named.items() if (key, step) not in self._held()]
        for i in range(0, len(new), _BATCH):
            self._client.log_batch(self.id, metrics=new[i : i + _BATCH])
        self._held().update((metric.key, step) for metric in new)

    def log_text(self, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            self.log_file(path, None)

    def log_file(self, path: Path, folder: str | None) -> None:
        self._client.log_artifact(self.id, str(path), folder)

    def tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        new = [RunTag(key, value[: record.MAX_TAG]) for key, value in tags.items() if self.tags.get(key) != value]
        if new:
            self._client.log_batch(self.id, tags=new)
        self.tags |= tags

    def set_status(self, status: str) -> None:
        if status == self.status:
            return
        if status == "RUNNING":
            self._client.update_run(self.id, status=status)
        else:
            self._client.set_terminated(self.id, status)
        self.status = status

    def finish(self, recorded: str) -> None:
        """Mark as finished; the tag, written last, says what of the store is recorded."""
        self.set_status("FINISHED")
        if self.tags.pop(_REASON, None) is not None:
            self._client.delete_tag(self.id, _REASON)
        self.tag({RECORDED: recorded})

    def fail(self, reason: str) -> None:
        self.set_status("FAILED")
        self.tag({_REASON: reason})

    def stop(self, reason: str) -> None:
        """Given up on purpose; the tag says on what evidence."""
        self.set_status("KILLED")
        self.tag({_REASON: reason})

    def _held(self) -> set[tuple[str, int]]:
        """(Metric, step) of every value on the server; asked for once, and only of runs that an earlier run began."""
        if self._points is None:
            self._points = {
                (key, point.step) for key in self._metrics for point in self._client.get_metric_history(self.id, key)
            }
        return self._points


def _connect(uri: str) -> MlflowClient:
    """A client for this address alone; a missing SQLite file is made."""
    # Read by mlflow on import: a dead server is given up after seconds instead of minutes, and nothing phones home.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):  # making a fresh database takes dozens of lines otherwise
        logging.getLogger(chatty).setLevel(logging.WARNING)
    file = record.sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        return str(found.experiment_id)
    # Beside the database: MLflow's own choice depends on where the program was started.
    file = record.sqlite_file(uri)
    location = (file.parent / f"{file.stem}-artifacts").as_uri() if file else None
    return str(client.create_experiment(name, artifact_location=location))


def _name(key: str) -> str:
    """A key as MLflow accepts it: letters, digits and `_ - . / : space`, at most 250."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./: ") else "_" for c in key)[:250]
