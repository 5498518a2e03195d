"""SIGTERM to a worker: its machine is about to go (spot instances, Kubernetes), and there are seconds to save the work.

Python hands signals to the main thread only. In a worker of Ray Train that is the actor's own, while stages run in
another one; so `listen` is sent there, and stages ask `told_to_end`.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_TOLD = threading.Event()


def listen() -> None:
    """Take note of the first SIGTERM; the second ends the process. Runs in the main thread."""
    signal.signal(signal.SIGTERM, _handle)


def told_to_end() -> bool:
    """Whether a SIGTERM has come."""
    return _TOLD.is_set()


def _handle(number: int, frame: FrameType | None) -> None:
    if _TOLD.is_set():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _TOLD.set()
