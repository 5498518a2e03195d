"""By how much memory grows while something runs: torch's allocator on a GPU, this process's resident set on CPU.

On CPU the number means something only in a process that does nothing else (`memory_probe`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from orchestrator.measurement.malloc import release_freed_memory

KIB = 1024
REPEATS = 5
"""Runs whose growth is taken on CPU, as long as they are short."""
SHORT_S = 1.0
"""No run is repeated once so much time is used up."""


class MemoryUnreadable(RuntimeError):
    """This platform does not tell the peak of a process's memory."""


def growth(device: torch.device, run: Callable[[], object]) -> int:
    """Largest number of bytes held during `run` beyond what was held just before it.

    The allocator of a GPU is exact. A resident set comes in pages, and where the heap puts a block depends on chance:
    short runs are repeated, and the median is taken.

    Raises:
        MemoryUnreadable: where a CPU process cannot read its peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    grown: list[int] = []
    start = time.perf_counter()
    while not grown or (len(grown) < REPEATS and time.perf_counter() - start < SHORT_S):
        release_freed_memory()
        reset_peak()
        before = status("VmRSS")
        run()
        grown.append(max(status("VmHWM") - before, 0))
    return int(statistics.median(grown))


def status(field: str) -> int:
    """A field of this process's memory in bytes: `VmRSS` (resident set) or `VmHWM` (its peak).

    Raises:
        MemoryUnreadable: where there is no such file, or no such line.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise MemoryUnreadable(f"this platform has no /proc/self/status: {error}") from error
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KIB
    raise MemoryUnreadable(f"/proc/self/status has no {field} here")


def reset_peak() -> None:
    """Let the peak of the resident set start anew from its present size.

    Raises:
        MemoryUnreadable: where that cannot be done.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise MemoryUnreadable(f"the peak of the resident set cannot be reset here: {error}") from error
