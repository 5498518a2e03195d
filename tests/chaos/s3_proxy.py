"""An S3 endpoint that fails: a proxy before moto's server, in a process of its own.

    python -m tests.chaos.s3_proxy PORT UPSTREAM_PORT SEED

Takes lines on its input: `calm`, or `fail KIND SHARE [MOST]` with one of

* `error`: answers 500, 503 or `SlowDown`, half of them after the request was carried out;
* `cut`: closes the connection, before or after the request was carried out, or in the middle of the answer;
* `hang`: carries the request out or not, and never answers.

A share of the requests fails so, drawn in the order of their arrival from the seed; at most MOST of them. Ends when
its input closes.
"""

from __future__ import annotations

import http.client
import random
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["error", "cut", "hang"]
_HANG_S = 75.0
"""Longer than the client waits for an answer."""
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>Please reduce your request rate.</Message>'
    b"</Error>"
)
_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
"""Headers that belong to one connection."""


@dataclass
class Schedule:
    """Which requests fail."""

    chance: random.Random
    kind: Fault | None = None
    share: float = 0.0
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def order(self, line: str) -> None:
        """Take a line of the input."""
        words = line.split()
        with self.lock:
            if words[0] == "calm":
                self.kind = None
            else:
                self.kind, self.share = words[1], float(words[2])  # type: ignore[assignment]
                self.left = int(words[3]) if len(words) > 3 else 1 << 30

    def draw(self) -> tuple[Fault, float] | None:
        """The fate of the next request, and a number that says how."""
        with self.lock:
            fails, how = self.chance.random() < self.share, self.chance.random()
            if self.kind is None or not fails or self.left <= 0:
                return None
            self.left -= 1
            return self.kind, how


def handler(schedule: Schedule, upstream: int) -> type[BaseHTTPRequestHandler]:
    """What answers requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def answer(self) -> None:
            fate, body = schedule.draw(), self.body()
            if fate is None:
                self.pass_on(*self.carry_out(body))
                return
            kind, how = fate
            carried_out = how < 0.5
            found = self.carry_out(body) if carried_out else None
            if kind == "error":
                status, code = ((500, b"InternalError"), (503, b"SlowDown"), (503, b"ServiceUnavailable"))[
                    int(how * 300) % 3
                ]
                self.pass_on(status, [("Content-Type", "application/xml")], _SLOW_DOWN % code)
            elif kind == "cut":
                if found is not None and how < 0.25:
                    self.pass_on(*found, half=True)
                self.cut()
            else:
                time.sleep(_HANG_S)
                self.cut()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 - as http.server wants them

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def carry_out(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=120)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _CONNECTION}
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            found = connection.getresponse()
            answer = found.status, found.getheaders(), found.read()
            connection.close()
            return answer

        def pass_on(self, status: int, headers: list[tuple[str, str]], body: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            told = False
            for name, value in headers:
                if name.lower() not in _CONNECTION:
                    told = told or name.lower() == "content-length"
                    self.send_header(name, value)
            if not told:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)

        def cut(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was faster
                return

    return Handler


def main() -> None:
    port, upstream, seed = (int(word) for word in sys.argv[1:4])
    schedule = Schedule(random.Random(seed))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(schedule, upstream))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for line in sys.stdin:
        schedule.order(line)


if __name__ == "__main__":
    main()
