"""MLflow's own HTTP server, in this process: tests take it down, bring it up and cut its answers at will."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cut = Callable[[str, str], bool]
"""(method, path) → whether the connection ends after the request was carried out, before it is answered."""


class MlflowServer:
    """Serves one SQLite database on a port of its own; down at first.

    MLflow keeps one tracking store a process, so there is one of these in a test process.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{database}"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / "artefacts").as_uri()
        self.database = f"sqlite:///{database}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.cut: Cut = lambda method, path: False
        self.served = 0
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        import logging

        from mlflow.server import app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)

        def cutting(environ: dict[str, Any], start_response: Any) -> Any:
            answer = list(app(environ, start_response))
            self.served += 1
            if self.cut(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
            return answer

        self._server = make_server("127.0.0.1", self.port, cutting, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
