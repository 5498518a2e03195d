"""How long a part of every step takes on the device, without making the step wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time that the device spends on a part of the program.

    On CPU it reads the clock. On a GPU, which works behind the program's back, it leaves events in the stream and
    looks at them only in `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds = 0.0
        """Time until the last `read`."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what is done inside; it adds up."""
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.pending.append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - started

    def read(self) -> float:
        """Seconds so far. On a GPU it waits for the last part that was timed."""
        if self.pending:
            self.pending[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self.pending) / 1000
            self.pending.clear()
        return self.seconds
