"""moto's S3 as a process of its own: prints its address, ends when its input closes.

Conditional writes are made one by one, as S3 makes them; moto's threads by themselves look and write in two steps. Each
object that lies in a bucket can be damaged by the tests through the ordinary API.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class OneByOne:
    """A WSGI application whose writes are atomic."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "PUT" and ("HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ):
            with self._lock:
                return list(self._application(environ, start_response))
        return self._application(environ, start_response)


if __name__ == "__main__":
    application = OneByOne(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
