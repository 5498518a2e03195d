"""What a user reads when the record cannot be written: what is wrong, and what to do. Real servers, real files."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.reporting.trouble import trouble
from tests.reporting.tracked import tracker


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """An HTTP server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def complaint(lab: Any, uri: str) -> str:
    """The one warning of a run whose record cannot be written."""
    warnings: list[str] = []
    live = tracker(lab, uri, warn=warnings.append)
    assert not live.sync(lab.plan, lab.store)
    live.close()
    assert len(warnings) == 1, warnings
    assert "nothing is lost" in warnings[0]
    assert "completes the record" in warnings[0]
    return warnings[0]


@pytest.fixture
def small(lab_of: Callable[..., Any]) -> Any:
    return lab_of(seeds=(0,), merging=("none",), distill=("soft",))


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            401,
            "You are not authenticated.",
            ("refuses the credentials (401)", "MLFLOW_TRACKING_PASSWORD", "never in the spec"),
        ),
        (
            401,
            '{"error_code": "UNAUTHENTICATED", "message": "who are you?"}',
            ("refuses the credentials (401)", "MLFLOW_TRACKING_TOKEN"),
        ),
        (403, "Permission denied", ("forbids writing (403)", "permission to edit the experiment")),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', ("forbids writing (403)", "permission")),
        (404, "<html>nginx</html>", ("is no MLflow server", "Check host and port of `tracking.uri`")),
        (200, "<html>another service</html>", ("is no MLflow server", "Check host and port of `tracking.uri`")),
        (503, "try again", ("answers with an error (503)", "server's log")),
        (
            500,
            '{"error_code": "INTERNAL_ERROR", "message": "no database"}',
            ("answers with an error (500)", "server's log"),
        ),
    ],
)
def test_what_a_server_answers(small: Any, status: int, body: str, says: tuple[str, ...]) -> None:
    with answering(status, body) as uri:
        said = complaint(small, uri)
    for words in (uri, *says):
        assert words in said


def test_no_server(small: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        said = complaint(small, f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "cannot be reached: connection refused. Start the server (`mlflow server …`)" in said


def test_a_name_that_nobody_knows(small: Any) -> None:
    assert "its name is not known here. Check `tracking.uri`" in complaint(small, "http://tracking.invalid:5000")


def test_a_server_that_hangs(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert "does not answer in time" in complaint(small, f"http://127.0.0.1:{deaf.getsockname()[1]}")


def test_a_database_of_another_version(small: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'old.db'}"
    MlflowClient(tracking_uri=uri).search_experiments()
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("update alembic_version set version_num = 'bd07f7e963c5'")
    # As a new process meets it: within one, MLflow keeps what it found out about a database.
    with sqlite3.connect(tmp_path / "old.db") as source, sqlite3.connect(tmp_path / "moved.db") as copy:
        source.backup(copy)
    said = complaint(small, f"sqlite:///{tmp_path / 'moved.db'}")
    assert "a database of another version of MLflow" in said
    assert f"`mlflow db upgrade sqlite:///{tmp_path / 'moved.db'}`" in said


def test_no_database(small: Any, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is a text, and a long one, so that SQLite looks at its first page." * 20)
    assert "is no SQLite database" in complaint(small, f"sqlite:///{tmp_path / 'text.db'}")
    (tmp_path / "folder.db").mkdir()
    assert "cannot be written" in complaint(small, f"sqlite:///{tmp_path / 'folder.db'}")


def test_no_secret_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
    error = RuntimeError("cannot post to http://me:swordfish@host/api, password hunter2hunter2")
    said = str(trouble("http://me:swordfish@host", error))
    assert "swordfish" not in said
    assert "hunter2" not in said
    assert "http://***@host" in said
