"""`slimvit ui`: MLflow's own user interface on the record, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from orchestrator.errors import UsageError
from orchestrator.reporting.record import sqlite_file
from orchestrator.storage import open_store
from specs.experiment import TrackingSpec

_HOST = "127.0.0.1"
_PATIENCE_S = 90.0
"""How long the server may take to answer; on two quiet cores it takes about 5 s."""


def open_ui(
    spec: Path | None = None, *, port: int = 5000, store: str | Path | None = None, assignments: Sequence[str] = ()
) -> None:
    """Serve the MLflow UI until Ctrl-C.

    Args:
        spec: whose record is shown; `None` = `mlflow.db` in the current folder.
        port: port on the loopback interface; 0 = any free one.
        store: without a spec, the record of the latest run on this artefact store is shown.
        assignments: `PATH=VALUE` each, for the spec.

    Raises:
        UsageError: if there is no record yet, or the port is taken.
    """
    serve(_uri(spec, store, assignments), port)


def serve(uri: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the UI on an MLflow address until Ctrl-C; of a server's address, only say it.

    Raises:
        UsageError: if there is no record at that address, the port is taken, or the server does not come up.
    """
    if uri.startswith(("http://", "https://")):
        say(f"MLflow runs at {uri}; open it in a browser.")
        return
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UsageError(f"there is no record at {file} yet. Run a spec first, or name the spec whose record you mean.")
    port = _free_port(port)
    address = f"http://{_HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", _HOST, "--port", str(port)]
    # Job execution would start eight more processes that a record has no use for.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | os.environ
    if threading.current_thread() is threading.main_thread():
        # `kill` ends the server as well, like Ctrl-C; and a process that was started in the background, with SIGINT
        # ignored, still ends when it is sent one.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryFile() as log:
        # A session of its own: the server starts workers, and Ctrl-C should end them all once, by us.
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_up(server, address, log)
            say(f"MLflow UI: {address} (Ctrl-C ends it)")
            server.wait()
        except KeyboardInterrupt:
            say("MLflow UI ended.")
        finally:
            _end(server)


def _uri(spec: Path | None, store: str | Path | None, assignments: Sequence[str]) -> str:
    """The spec's address, or that of the latest run in the store, or the default."""
    from orchestrator.reporting.find import latest_experiment, load_spec

    if spec is not None:
        return load_spec(spec, assignments).experiment.tracking.uri
    if store is not None:
        return latest_experiment(open_store(store)).tracking.uri
    return TrackingSpec().uri


def _free_port(port: int) -> int:
    """The port, if nobody listens on it; for 0 one that is free now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} on {_HOST} cannot be used: {error.strerror}. Choose another with `--port`, or 0 for any "
                "free one."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    patience = time.monotonic() + _PATIENCE_S
    while time.monotonic() < patience:
        if server.poll() is not None:
            raise UsageError(f"the MLflow server did not start:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UsageError(f"the MLflow server did not answer at {address} within {_PATIENCE_S:.0f} s:\n{_tail(log)}")


def _tail(log: IO[bytes], num_lines: int = 10) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-num_lines:])


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, and nothing else."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(timeout=10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
        break
