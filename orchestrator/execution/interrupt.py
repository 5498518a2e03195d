"""Ctrl-C and SIGTERM: the first asks to save and stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopOnSignal:
    """A context in which the first SIGINT or SIGTERM sets a flag and the second raises `KeyboardInterrupt`.

    Args:
        on_first: called at the first signal; must be quick.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._stop = threading.Event()
        self._on_first = on_first
        self._handlers: dict[int, object] = {}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers from before back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal` gave

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
        self._on_first()
