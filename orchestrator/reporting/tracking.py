"""MLflow's client as this project uses it. The only file that imports mlflow.

Everything here may be repeated: runs are found by tags, parameters by name, values by name and step, and what the
server has is not sent again. A value carries the time at which it was taken, not the time of sending; MLflow's
databases keep one of two values that agree in name, step, time and value.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.reporting import record
from orchestrator.reporting.record import KEY, KIND, PARENT, PLAN, REASON, RECORDED
from orchestrator.reporting.stored import finite

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_BATCH = 500
"""Values in one request; MLflow takes at most 1,000."""
_TAGS_AND_PARAMS = 100
"""Tags or parameters in one request; MLflow takes no more."""


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    step: int
    at_ms: int
    """Milliseconds since the epoch."""


class TrackingServer:
    """The runs of one plan in one MLflow experiment. Blocking; used from one thread.

    Args:
        uri: MLflow address, `sqlite:///FILE` or `http(s)://HOST:PORT`; a missing SQLite file is made.
        experiment_name: MLflow experiment, made if there is none.
        plan_digest: identity of the plan; its runs carry it as a tag.

    Raises:
        Exception: here and in all methods, whatever the client raises when the server cannot be reached or written.
    """

    def __init__(self, uri: str, experiment_name: str, plan_digest: str) -> None:
        self._plan_digest = plan_digest
        with _alone_in_database(uri):
            self._client = _connect(uri)
            self.experiment_id = _experiment_id(self._client, uri, experiment_name)

    def runs(self) -> dict[str, TrackedRun]:
        """All runs of the plan, by `kind:key`.

        Of two runs with one key the later one is deleted (it stays in MLflow's bin): it comes from a request whose
        answer was lost. The journal and the store have everything that it held.
        """
        found: dict[str, TrackedRun] = {}
        for run in self._search():
            key = f"{run.data.tags[KIND]}:{run.data.tags[KEY]}"
            if key in found:
                self._client.delete_run(run.info.run_id)
            else:
                found[key] = TrackedRun(self._client, run, fresh=False)
        return found

    def create(self, kind: str, key: str, title: str, parent: str | None) -> TrackedRun:
        """A new run."""
        tags = {PLAN: self._plan_digest, KIND: kind, KEY: key} | ({PARENT: parent} if parent else {})
        run = self._client.create_run(self.experiment_id, run_name=title, tags=tags)
        return TrackedRun(self._client, run, fresh=True)

    def delete(self, run: TrackedRun) -> None:
        """Take a run out of the record; MLflow keeps it in its bin."""
        self._client.delete_run(run.id)

    def _search(self) -> Iterable[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                f"tags.`{PLAN}` = '{self._plan_digest}'",
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return


class TrackedRun:
    """One MLflow run, with what the server is known to hold of it."""

    def __init__(self, client: MlflowClient, run: Run, *, fresh: bool) -> None:
        self._client = client
        self.id: str = run.info.run_id
        self.status: str = run.info.status
        self.tags: dict[str, str] = dict(run.data.tags)
        self._parameters = set(run.data.params)
        self._metrics = set(run.data.metrics)
        self._held: set[tuple[str, int]] | None = set() if fresh else None

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Send the parameters that the server does not have."""
        from mlflow.entities import Param

        named = {_name(key): value for key, value in parameters.items()}
        new = [Param(key, value) for key, value in named.items() if key not in self._parameters]
        for i in range(0, len(new), _TAGS_AND_PARAMS):
            self._client.log_batch(self.id, params=new[i : i + _TAGS_AND_PARAMS])
        self._parameters |= named.keys()

    def log_points(self, points: Iterable[Point]) -> None:
        """Send the values that the server does not have at their steps; of two at one step, the first."""
        from mlflow.entities import Metric

        held = self._points()
        new: dict[tuple[str, int], Metric] = {}
        for point in points:
            place = _name(point.key), point.step
            if place not in held:
                new.setdefault(place, Metric(place[0], point.value, point.at_ms, point.step))
        batch = list(new.values())
        for i in range(0, len(batch), _BATCH):
            self._client.log_batch(self.id, metrics=batch[i : i + _BATCH])
        held.update(new)

    def log_metrics(self, values: Mapping[str, Any], step: int, at_ms: int) -> None:
        """Send the finite ones of these values."""
        self.log_points(Point(key, value, step, at_ms) for key, value in finite(dict(values)).items())

    def log_text(self, name: str, text: str) -> None:
        """Keep a text as a file of the run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            self.log_file(path, None)

    def log_file(self, path: Path, folder: str | None) -> None:
        """Keep a file with the run."""
        self._client.log_artifact(self.id, str(path), folder)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set the tags that differ."""
        from mlflow.entities import RunTag

        new = [RunTag(key, value[: record.MAX_TAG]) for key, value in tags.items() if self.tags.get(key) != value]
        if new:
            self._client.log_batch(self.id, tags=new)
        self.tags |= tags

    def set_status(self, status: str, at_ms: int) -> None:
        """Set the status; the end of a run that ends is `at_ms`."""
        if status == self.status:
            return
        if status == "RUNNING":
            self._client.update_run(self.id, status=status)
        else:
            self._client.set_terminated(self.id, status, end_time=at_ms)
        self.status = status

    def finish(self, recorded: str, at_ms: int) -> None:
        """Mark as finished; the tag, written last, says what of the store is recorded."""
        self.set_status("FINISHED", at_ms)
        if self.tags.pop(REASON, None) is not None:
            self._client.delete_tag(self.id, REASON)
        self.tag({RECORDED: recorded})

    def fail(self, reason: str, at_ms: int) -> None:
        """Mark as failed."""
        self.set_status("FAILED", at_ms)
        self.tag({REASON: reason})

    def stop(self, reason: str, at_ms: int) -> None:
        """Mark as given up on purpose; the tag says on what evidence."""
        self.set_status("KILLED", at_ms)
        self.tag({REASON: reason})

    def _points(self) -> set[tuple[str, int]]:
        """(Metric, step) of every value on the server; asked for once, and only of runs that an earlier run began."""
        if self._held is None:
            self._held = {
                (key, point.step) for key in self._metrics for point in self._client.get_metric_history(self.id, key)
            }
        return self._held


def _connect(uri: str) -> MlflowClient:
    """A client for this address alone."""
    # Read by mlflow on import: a dead server is given up after seconds instead of minutes, and nothing phones home.
    # No retries below ours: MLflow's would send `create run` a second time after an answer that was lost.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Of each run that ends it prints two addresses, in the midst of what our own view shows.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):  # making a fresh database takes dozens of lines otherwise
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _alone_in_database(uri: str) -> Iterator[None]:
    """One process at a time makes, and looks up, the tables and the experiment of a SQLite file."""
    file = record.sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():  # MLflow tries for minutes to open what cannot be opened
            file.open("ab").close()
        yield


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        return str(found.experiment_id)
    # Beside the database: MLflow's own choice depends on where the program was started.
    file = record.sqlite_file(uri)
    location = (file.parent / f"{file.stem}-artifacts").as_uri() if file else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # made by somebody else meanwhile
        if found is None:
            raise
        return str(found.experiment_id)


def _name(key: str) -> str:
    """A key as MLflow accepts it: letters, digits and `_ - . / : space`, at most 250."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./: ") else "_" for c in key)[:250]
