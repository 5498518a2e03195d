"""A worker's line to the queue: progress goes out, the wish to stop comes in, without the training loop waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from types import TracebackType

from orchestrator.training.interface import Progress

_BEAT_S = 0.25
"""How often the line is used, in seconds."""


class Reporter:
    """A thread that calls `beat` four times a second while a stage runs.

    Args:
        beat: takes progress, returns whether to stop; may take milliseconds.
    """

    def __init__(self, beat: Callable[[Collection[Progress]], bool]) -> None:
        self._beat = beat
        self._outgoing: list[Progress] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slimvit-reporter", daemon=True)

    def report(self, progress: Progress) -> None:
        """Queue progress; of several `step`s between two beats only the last is sent."""
        with self._lock:
            if progress.kind == "step" and self._outgoing and self._outgoing[-1].kind == "step":
                self._outgoing.pop()
            self._outgoing.append(progress)

    def should_stop(self) -> bool:
        """Whether the stage shall save its work and return; costs nothing."""
        return self._stop.is_set()

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what is left and end the thread."""
        self._closed.set()
        self._thread.join()
        self._send()

    def _run(self) -> None:
        while not self._closed.wait(_BEAT_S):
            try:
                self._send()
            except Exception:  # the queue is gone, and with it the run: end the stage; the next call to it says why
                self._stop.set()
                return

    def _send(self) -> None:
        with self._lock:
            progress, self._outgoing = self._outgoing, []
        if self._beat(progress):
            self._stop.set()
