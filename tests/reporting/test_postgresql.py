"""The record on what a team uses: `mlflow server` on PostgreSQL, its files in a bucket, killed in the middle."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.plan import TrainStage
from orchestrator.reporting.writer import Patience
from tests.cluster.s3_process import CREDENTIALS, s3_server
from tests.reporting.tracked import check_complete, events, query, tracker

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

PATIENCE_S = 300
BUCKET = "slimvit-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"{process.args!r} ended"
        assert time.monotonic() < until, f"{process.args!r} is not ready"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """The process and its children, at once; it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def postgresql_programs() -> Path:
    """Folder of `initdb` and `postgres`."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    folders = [folder for folder in folders if (folder / "postgres").exists()]
    if not folders:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    return folders[-1]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A fresh PostgreSQL cluster on a port of its own. It refuses root, and pytest's folders are closed to others."""
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install psycopg2-binary")
    programs = postgresql_programs()
    identity: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="slimvit-postgresql-"))
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses root, and there is no user `postgres`")
        os.chown(folder, user.pw_uid, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    port = free_port()
    data = str(folder / "data")
    make = [str(programs / "initdb"), "-D", data, "-U", "slimvit", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, check=True, cwd=folder, stdout=subprocess.DEVNULL, **identity)
    serve = [str(programs / "postgres"), "-D", data, "-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-F"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log, start_new_session=True, **identity)
    uri = f"postgresql://slimvit@127.0.0.1:{port}/postgres"

    def ready() -> bool:
        try:
            return query(uri, "select 1") == [(1,)]
        except psycopg2.OperationalError:  # it starts
            return False

    try:
        wait_for(ready, server)
        yield uri
    finally:
        kill(server)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of an S3 endpoint with one bucket."""
    with s3_server() as endpoint:
        s3(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint


def s3(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


class Server:
    """`mlflow server` as a team would start it."""

    def __init__(self, database: str, endpoint: str, log: Path) -> None:
        self.port, self._log = free_port(), log
        self.uri = f"http://127.0.0.1:{self.port}"
        # Without `+psycopg2` SQLAlchemy 2.1 looks for psycopg 3.
        backend = database.replace("postgresql://", "postgresql+psycopg2://")
        self._command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--workers", "1"]
        self._command += ["--artifacts-destination", f"s3://{BUCKET}/record", "--host", "127.0.0.1"]
        self._command += ["--port", str(self.port)]
        self._environment = (
            os.environ
            | CREDENTIALS
            | {
                "MLFLOW_S3_ENDPOINT_URL": endpoint,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
        )
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(lambda: answers(f"{self.uri}/health"), self._process)
        except AssertionError as error:
            raise AssertionError(self._log.read_text()[-3000:]) from error

    def killed(self) -> None:
        if self._process is not None:
            kill(self._process)


@pytest.fixture
def server(database: str, bucket: str, tmp_path: Path) -> Iterator[Server]:
    one = Server(database, bucket, tmp_path / "server.log")
    one.up()
    yield one
    one.killed()


def test_a_team_server_killed_in_the_middle(
    lab_of: Callable[..., Any], server: Server, database: str, bucket: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    lab = lab_of(seeds=(0,), merging=("none", "r2"), distill=("soft",)).finish()
    live = tracker(lab, server.uri, store=lab.store, warn=lambda message: None, patience=Patience(0.2, 1.0, 50))
    said = events(lab)
    teacher = next(s for s in lab.plan.walk() if isinstance(s, TrainStage))
    for i, event in enumerate(said):
        live.on_event(event)
        if i == len(said) // 2:
            assert server._process is not None
            wait_for(lambda: bool(query(database, "select 1 from metrics")), server._process)
            server.killed()
    server.up()
    assert live.sync(lab.plan, lab.store)
    live.close()

    def files_of(run: Any, folder: str | None = None) -> set[str]:
        found: set[str] = set()
        for one in client.list_artifacts(run.info.run_id, folder):
            found |= files_of(run, one.path) if one.is_dir else {one.path}
        return found

    client = MlflowClient(tracking_uri=server.uri)
    check_complete(lab, server.uri, database, files_of)
    before = [query(database, f"select count(*) from {table}") for table in ("runs", "metrics", "params", "tags")]

    again = tracker(lab, server.uri, store=lab.store)
    for event in said:
        again.on_event(event)
    assert again.sync(lab.plan, lab.store)
    again.close()
    check_complete(lab, server.uri, database, files_of)
    assert before == [
        query(database, f"select count(*) from {table}") for table in ("runs", "metrics", "params", "tags")
    ]

    (run,) = client.search_runs(
        [client.get_experiment_by_name(lab.name).experiment_id], f"tags.`slimvit.key` = '{teacher.digest}'"
    )
    path = client.download_artifacts(run.info.run_id, "checkpoint/model.safetensors", str(tmp_path))
    assert Path(path).read_bytes() == b"weights of " + teacher.digest.encode()
    stored = [entry["Key"] for entry in s3(bucket).list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.startswith("record/") and key.endswith("checkpoint/model.safetensors") for key in stored)
