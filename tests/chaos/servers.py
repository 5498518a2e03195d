"""The servers that a run depends on, as processes that can be killed and started again at the same address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.s3_client import client
from specs.address import Address
from tests.chaos.processes import below, kill
from tests.cluster.s3_process import ROOT, s3_server

BUCKET = "chaos"
_PATIENCE_S = 240.0
"""A tracking server takes ten seconds to start on a quiet machine."""


class Server:
    """Something that runs at one port, whoever kills it; in a session of its own, so that no signal to the group of
    whoever disturbs reaches it, nor the other way round."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Start it if it is down; returns before it answers."""
        raise NotImplementedError

    def down(self) -> None:
        """SIGKILL, to the processes below it too."""
        if self.process is not None:
            kill(*below(self.process.pid).values())
            self.process.wait(30)
            self.process = None

    def wait(self) -> None:
        """Start it if it is down, and wait until it answers."""
        self.up()
        assert self.process is not None
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except urllib.error.HTTPError:  # an answer
                return
            except OSError:
                assert self.process.poll() is None, "a server ended by itself"
                assert time.monotonic() < until, "a server does not answer"
                time.sleep(0.2)


class Tracking(Server):
    """MLflow's own server before a SQLite database.

    Args:
        folder: for the database, artefacts and the log.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.database = folder, folder / "mlflow.db"

    def up(self) -> None:
        if self.process is not None:
            return
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "artefacts")]
        with (self.folder / "mlflow.log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # nobody gives it jobs
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )


class Endpoint(Server):
    """What clients see of the bucket: the failing proxy, whose SIGKILL loses no object.

    Args:
        upstream: port of moto's server, which keeps the objects.
    """

    def __init__(self, upstream: int) -> None:
        super().__init__()
        self.upstream, self.seed = upstream, 0

    def up(self) -> None:
        if self.process is None:
            words = [str(self.port), str(self.upstream), str(self.seed)]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.s3_proxy", *words],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            assert self.process.stdout is not None
            self.process.stdout.readline()

    def order(self, line: str) -> None:
        """`calm`, or `fail KIND SHARE [MOST]`."""
        assert self.process is not None
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)


class Servers:
    """All of them; those of the bucket are started when they are first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.tracking = Tracking(folder)
        self._stack, self._true = stack, ""
        self._endpoint: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The bucket's, as clients see it."""
        if self._endpoint is None:
            self._true = self._stack.enter_context(s3_server())
            made: Any = client(Address(BUCKET, "", self._true))
            made.create_bucket(Bucket=BUCKET)
            self._endpoint = Endpoint(int(self._true.rpartition(":")[2]))
            self._stack.callback(self._endpoint.down)
            self._endpoint.up()
        return self._endpoint

    def pids(self) -> set[int]:
        """Processes of those that may have been started anew."""
        made = [self.tracking] if self._endpoint is None else [self.tracking, self._endpoint]
        return {server.process.pid for server in made if server.process is not None}

    @property
    def bucket(self) -> str:
        """Address of the bucket's own server, which never fails."""
        assert self.endpoint
        return self._true


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Servers that keep what they keep in a folder; the tracking server is on its way."""
    with ExitStack() as stack:
        made = Servers(folder, stack)
        stack.callback(made.tracking.down)
        made.tracking.up()
        yield made
