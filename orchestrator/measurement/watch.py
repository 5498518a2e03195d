"""What can be seen of a device while something is timed on it: who else works there, whether it slows itself down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from orchestrator.measurement.guard import Seen, Watch
from orchestrator.measurement.nvml import Gpu, NvmlUnavailable, gpu_of

MIN_SECONDS = 0.5
"""The system counts processor time in ticks of a hundredth of a second; over less than this they say little."""
LOOK_EVERY = 0.25
"""Seconds between two questions to the GPU's driver, which takes a while to answer."""
THROTTLE_COUNTERS = "/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"


def watch_of(device: torch.device) -> Callable[[], Watch]:
    """What watches this device; a GPU whose driver does not answer is not watched."""
    if device.type == "cpu":
        return CpuWatch
    try:
        gpu = gpu_of(device)
    except NvmlUnavailable:
        return lambda: GpuWatch(None)
    return lambda: GpuWatch(gpu)


class CpuWatch:
    """Sees whether threads of this process wait for processors, and what others use of the machine.

    What others use is the processor time of the whole machine less that of this process and its children. Time that a
    hypervisor took away counts as somebody else's. In a container the machine is the host.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waits = waits()
        self.busy, self.total = _machine_seconds()
        self.own = own_seconds()
        self.throttles = _throttle_count()

    def look(self) -> None:
        """The counters need no looking at in between."""

    def seen(self) -> Seen:
        """The counters since the start."""
        throttled = _throttle_count() - self.throttles
        reasons = (f"too hot, {throttled} times",) if throttled > 0 else ()
        elapsed = time.monotonic() - self.started
        if elapsed < MIN_SECONDS:
            return Seen(throttled=reasons)
        waiting = waiting_percent(self.waits, waits(), elapsed, torch.get_num_threads())
        busy, total = _machine_seconds()
        others = busy - self.busy - (own_seconds() - self.own)
        return Seen(waiting=waiting, foreign=100 * max(others, 0.0) / (total - self.total), throttled=reasons)


class GpuWatch:
    """Asks the GPU's driver for other processes and for reasons of throttling, a few times a second."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu = gpu
        self.strangers: int | None = None
        self.reasons: set[str] = set()
        self.next_look = 0.0
        self.look()

    def look(self) -> None:
        """Ask, if the last time was long enough ago."""
        if self.gpu is None or time.monotonic() < self.next_look:
            return
        try:
            self.reasons |= self.gpu.throttling()
            self.strangers = max(self.strangers or 0, self.gpu.other_processes())
        except NvmlUnavailable:
            self.gpu = None  # what was seen so far stays
        self.next_look = time.monotonic() + LOOK_EVERY

    def seen(self) -> Seen:
        """All answers so far."""
        self.next_look = 0.0
        self.look()
        return Seen(strangers=self.strangers, throttled=tuple(sorted(self.reasons)))


def _machine_seconds() -> tuple[float, float]:
    """Busy and all seconds of all processors since they started."""
    times = psutil.cpu_times()._asdict()
    idle = times["idle"] + times.get("iowait", 0.0)
    total = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))  # guests are in user time
    return total - idle, total


def waits() -> dict[str, float]:
    """Thread of this process → seconds that it has been ready to run without a processor; empty where the system does
    not tell (only Linux does).

    Source: Linux, Documentation/scheduler/sched-stats: the second number of `schedstat`, in nanoseconds.
    """
    seconds = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # ended since it was listed
            seconds[task.parent.name] = int(task.read_text(encoding="ascii").split()[1]) / 1e9
    return seconds


def waiting_percent(before: dict[str, float], after: dict[str, float], elapsed: float, threads: int) -> float | None:
    """Share of the time that computing threads waited, in percent; `None` if nothing is known of any thread.

    The threads that compute are taken to be those that waited longest, for the others sleep.

    Args:
        before, after: what `waits` gave.
        elapsed: seconds between the two.
        threads: how many compute.
    """
    each = sorted((s - before.get(thread, 0.0) for thread, s in after.items()), reverse=True)[:threads]
    return 100 * sum(each) / len(each) / elapsed if each else None


def own_seconds() -> float:
    """Processor seconds of this process and its children, dead and alive."""
    process = psutil.Process()
    own = process.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended since it was listed; counted among the dead
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _throttle_count() -> int:
    counters = Path("/").glob(THROTTLE_COUNTERS.lstrip("/"))
    return sum(int(counter.read_text(encoding="ascii")) for counter in counters)
