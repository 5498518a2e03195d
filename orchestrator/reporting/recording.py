"""The record of one plan: what of the journal and of the artefact store goes into which run of the tracking server."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from orchestrator.planning.plan import Combination, MeasureStage, Plan
from orchestrator.reporting import record
from orchestrator.reporting.compare import compare
from orchestrator.reporting.journal import Entry
from orchestrator.reporting.record import PARENT, RECORDED
from orchestrator.reporting.results import read_results, rows_by_column
from orchestrator.reporting.stored import finite, read_history, read_result, stage_content, stage_folder
from orchestrator.reporting.table import to_csv, to_json
from orchestrator.reporting.tracking import Point, TrackedRun, TrackingServer
from specs.experiment import Experiment


class Record:
    """The runs of one plan on an MLflow server. Blocking; used from one thread.

    Args:
        uri: MLflow address.
        experiment_name: MLflow experiment.
        plan: gives what is run, as it is now: a search makes it grow.
        experiment: the resolved spec.
        store: with it, a stage's artefacts are recorded as soon as it is finished, not only by `complete`.

    Raises:
        Exception: whatever the MLflow client raises when the server cannot be reached or written.
    """

    def __init__(
        self,
        uri: str,
        experiment_name: str,
        plan: Callable[[], Plan],
        experiment: Experiment,
        store: ArtifactStore | None = None,
    ) -> None:
        self._current, self._experiment, self._store = plan, experiment, store
        self._plan = plan()
        self._owners = record.owners(self._plan)
        self._server = TrackingServer(uri, experiment_name, record.plan_digest(self._plan))
        self._runs = self._server.runs()
        self._wanted: dict[str, tuple[str, int, str]] = {}
        """Key of a run → status it shall have, since when (ms), and why."""
        self._open: dict[str, str] = {}
        """Stage that runs → journal file that says so."""
        self._parent = self._run("experiment", self._plan.experiment, self._plan.experiment, parent=None)
        self._parent.log_parameters(record.experiment_parameters(self._plan, experiment))

    def apply(self, entries: Sequence[Entry]) -> None:
        """Bring the runs up to these entries. All of them are read before anything is sent, so that a journal that is
        replayed costs few requests, and no run goes through states that are long past."""
        self._grow()
        points: dict[str, list[Point]] = defaultdict(list)
        finished: dict[str, int] = {}
        settled = self._settled({entry.stage for entry in entries})
        for entry in entries:
            at = entry.milliseconds
            if entry.kind == "ended":
                self._stop(entry)
                continue
            if entry.stage not in self._plan.stages or (entry.stage in settled and entry.kind != "finished"):
                continue
            if entry.kind == "started":
                self._open[entry.stage] = entry.source
                finished.pop(entry.stage, None)
                owner = self._combination_key(self._owners[entry.stage])
                for key in (f"experiment:{self._plan.experiment}", owner, f"stage:{entry.stage}"):
                    self._wanted[key] = ("RUNNING", at, "")
            elif entry.kind == "epoch":
                points[entry.stage] += [Point(k, v, entry.epoch, at) for k, v in entry.values.items()]
            elif entry.kind == "failed":
                self._open.pop(entry.stage, None)
                self._fail(entry)
            elif entry.kind == "stopped":
                self._open.pop(entry.stage, None)
                key = f"stage:{entry.stage}"
                if key in self._runs or key in self._wanted:
                    self._wanted[key] = ("KILLED", at, entry.reason)
            else:
                self._open.pop(entry.stage, None)
                self._wanted.pop(f"stage:{entry.stage}", None)
                finished[entry.stage] = at
        for digest, taken in points.items():
            self._stage_run(digest).log_points(taken)
        for digest, at in finished.items():
            self._finished(digest, at)
        self._settle()

    def complete(self, store: ArtifactStore, report: Path | None) -> bool:
        """Bring every run up to what the store holds; whether all of the plan is finished and recorded.

        Args:
            store: where the stages are committed.
            report: HTML report to be kept with the record.
        """
        self._grow()
        comparison = compare(self._plan, store)
        fingerprint = record.fingerprint(to_json(comparison), report)
        if self._parent.tags.get(RECORDED) == fingerprint and self._parent.status == "FINISHED":
            return True
        now = int(time.time() * 1000)
        for digest in self._plan.stages:
            self.stage(digest, store, now)
        rows = rows_by_column(self._plan, read_results(self._plan, store))
        for combination in self._plan.combinations:
            keyed = rows.get((combination.name, combination.seed))
            if keyed is not None:
                text = json.dumps([r.model_dump(mode="json") for r in keyed.values()], indent=1)
                content = hashlib.sha256(text.encode()).hexdigest()
                held = self._holds(self._combination_key(combination), content)
                run = self._combination_run(combination)
                if not held:
                    taken = {key: r.value for key, r in keyed.items() if r.value is not None}
                    run.log_metrics(taken, step=0, at_ms=now)
                    run.log_text("rows.json", text)
                run.tag(self._stages_of(combination))
                run.finish(recorded=content, at_ms=now)
        for digest, owner in self._owners.items():
            if (known := self._runs.get(f"stage:{digest}")) is not None:  # below one that was begun anew, maybe
                known.tag({PARENT: self._combination_run(owner).id})
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
        missing = {(c.name, c.seed): c for c in self._plan.combinations if (c.name, c.seed) not in rows}
        for combination in list(missing.values()):
            if combination.name in self._plan.stopped:
                del missing[combination.name, combination.seed]
                self._wanted.pop(self._combination_key(combination), None)
                self._combination_run(combination).stop(self._plan.stopped[combination.name], now)
        finished = not missing
        if finished:
            self._parent.finish(recorded=fingerprint, at_ms=now)
        elif any(run.status == "FAILED" for run in self._runs.values()):
            self._parent.fail("at least one stage failed", now)
        self._stop(Entry(now / 1000, "ended"))  # whoever still runs something has said so in the journal
        self._settle()
        return finished

    def stage(self, digest: str, store: ArtifactStore, at_ms: int) -> bool:
        """Complete the run of a finished stage from its artefact; `False` if the stage is not finished.

        Raises:
            StoreError: if the artefact is damaged.
        """
        content, known = stage_content(store, digest), self._runs.get(f"stage:{digest}")
        if content is not None and known is not None and known.tags.get(RECORDED) == content:
            known.finish(recorded=content, at_ms=at_ms)  # it may have been at work again, to the same end
            return True
        folder = stage_folder(store, digest)
        if content is None or folder is None:
            return False
        self._holds(f"stage:{digest}", content)
        run = self._stage_run(digest)
        stage = self._plan.stages[digest]
        if not isinstance(stage, MeasureStage):
            curves = [
                Point(k, v, epoch.epoch, at_ms) for epoch in read_history(folder) for k, v in epoch.values.items()
            ]
            result = read_result(folder)
            final = finite(result | result.get("metrics", {}))
            run.log_points([*curves, *(Point(f"final.{name}", value, 0, at_ms) for name, value in final.items())])
        for path in sorted(folder.iterdir()):
            if path.is_file():
                run.log_file(path, "checkpoint" if path.name in ("model.safetensors", "model.json") else None)
        run.finish(recorded=content, at_ms=at_ms)
        return True

    def _grow(self) -> None:
        """Take in what a search has proposed since; runs that are there stay where they are."""
        plan = self._current()
        if plan is not self._plan:
            self._plan, self._owners = plan, {**record.owners(plan), **self._owners}

    def _settled(self, digests: Collection[str]) -> frozenset[str]:
        """Those of these stages that are recorded, and whose artefacts nobody has deleted since."""
        runs = {digest: self._runs.get(f"stage:{digest}") for digest in digests}
        recorded = [digest for digest, run in runs.items() if run is not None and RECORDED in run.tags]
        if self._store is None or not recorded:
            return frozenset(recorded)
        there = self._store.present([f"stages/{digest}" for digest in recorded])
        return frozenset(digest for digest in recorded if f"stages/{digest}" in there)

    def _holds(self, key: str, content: str) -> bool:
        """Whether a run has all of this. One that has all of something else, which was damaged and is computed anew, is
        taken out of the record: MLflow changes no value of a run, and what is not measured any more would stay."""
        run = self._runs.get(key)
        recorded = None if run is None else run.tags.get(RECORDED)
        if run is not None and recorded is not None and recorded != content:
            self._server.delete(run)
            del self._runs[key]
        return recorded == content

    def _finished(self, digest: str, at_ms: int) -> None:
        if self._store is None:
            self._stage_run(digest).set_status("FINISHED", at_ms)
            return
        try:
            self.stage(digest, self._store, at_ms)
        except StoreError:  # damaged: whoever reads the artefact next says so, and it is no fault of the server
            return

    def _fail(self, entry: Entry) -> None:
        """A stage gave up, and with it every combination that needs it."""
        label = self._plan.stages[entry.stage].label
        self._wanted[f"stage:{entry.stage}"] = ("FAILED", entry.milliseconds, entry.reason)
        for combination in self._plan.combinations:
            if entry.stage in combination.stages:
                why = f"`{label}` failed: {entry.reason}"
                self._wanted[self._combination_key(combination)] = ("FAILED", entry.milliseconds, why)

    def _stop(self, entry: Entry) -> None:
        """A process ended: what it left open, and what nobody runs, was stopped and can be gone on with."""
        self._open = {stage: source for stage, source in self._open.items() if source != entry.source}
        still = {f"stage:{stage}" for stage in self._open}
        still |= {self._combination_key(self._owners[stage]) for stage in self._open}
        if self._open:
            still.add(f"experiment:{self._plan.experiment}")
        running = {key for key, run in self._runs.items() if run.status == "RUNNING" and key not in self._wanted}
        running |= {key for key, (status, _, _) in self._wanted.items() if status == "RUNNING"}
        for key in running - still:
            self._wanted[key] = ("KILLED", entry.milliseconds, "")

    def _settle(self) -> None:
        """Send the states that the runs shall have."""
        stages = {self._combination_key(c): c for c in self._plan.combinations}
        for key, (status, at_ms, reason) in self._wanted.items():
            if key.startswith("stage:"):
                run = self._stage_run(key.removeprefix("stage:"))
            elif key in stages:
                run = self._combination_run(stages[key])
            else:
                run = self._parent
            if status == "FAILED":
                run.fail(reason, at_ms)
            elif status == "KILLED" and reason:
                run.stop(reason, at_ms)
            else:
                run.set_status(status, at_ms)
        self._wanted.clear()

    def _combination_key(self, combination: Combination) -> str:
        return f"combination:{combination.name} #{combination.seed}"

    def _combination_run(self, combination: Combination) -> TrackedRun:
        key = self._combination_key(combination).removeprefix("combination:")
        several = len({c.seed for c in self._plan.combinations}) > 1
        title = f"{combination.name}, seed {combination.seed}" if several else combination.name
        run = self._run("combination", key, title, parent=self._parent.id)
        run.log_parameters(record.combination_parameters(self._plan, combination))
        return run

    def _stage_run(self, digest: str) -> TrackedRun:
        known = self._runs.get(f"stage:{digest}")
        if known is None:
            parent = self._combination_run(self._owners[digest])
            known = self._run("stage", digest, self._plan.stages[digest].label, parent=parent.id)
        known.log_parameters(record.stage_parameters(self._plan, digest))
        return known

    def _stages_of(self, combination: Combination) -> dict[str, str]:
        """Which runs hold the stages of a combination: as tag for programs, as a note with links for people."""
        runs = {self._plan.stages[d].label: self._runs[f"stage:{d}"].id for d in combination.stages}
        links = "\n".join(
            f"* [{label}](#/experiments/{self._server.experiment_id}/runs/{run_id})" for label, run_id in runs.items()
        )
        return {"slimvit.stages": json.dumps(runs), "mlflow.note.content": f"Stages, in order:\n\n{links}"}

    def _run(self, kind: str, key: str, title: str, parent: str | None) -> TrackedRun:
        found = self._runs.get(f"{kind}:{key}")
        if found is None:
            found = self._runs[f"{kind}:{key}"] = self._server.create(kind, key, title, parent)
        return found
