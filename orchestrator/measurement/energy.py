"""Rows of energy: joules of the device an image, without what it draws when it does nothing.

    energy = (joules of a window − idle power · seconds of the window) / images of the window

The counter is the device's own (NVML). It moves in steps of tens of milliseconds, so windows last seconds, and the
device is waited for at both of their edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from orchestrator.measurement.nvml import Gpu, NvmlUnavailable, gpu_of
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.runnable import runnable
from orchestrator.measurement.subject import Bench
from orchestrator.measurement.timing import Network

ENERGIES = ("energy_j", "energy_ratio")
"""Metrics that are taken here."""
WINDOW_SECONDS = 2.0
"""Shortest window; a step of the counter is a few percent of it."""
SETTLE_SECONDS = 1.0
"""Rest before idle power is read."""
ROUNDS = 2
"""Times that every network has its window, in the order A B B A."""


def take_energy(bench: Bench, does_not_fit: Mapping[str, set[int]]) -> None:
    """Energy at the largest batch size that fits; nothing here ends a measurement.

    Args:
        does_not_fit: network → batch sizes that memory is known not to hold.
    """
    if not bench.rows.wanted.intersection(ENERGIES):
        return
    sizes = sorted(set(bench.settings.batch_sizes), reverse=True)
    try:
        gpu = _counter(bench.settings.device)
    except NvmlUnavailable as error:
        _missing(bench, sizes[0], str(error))
        return
    for batch_size in sizes:
        networks, why = runnable(bench, batch_size, does_not_fit)
        if STUDENT not in networks:
            _missing(bench, batch_size, why[STUDENT])
            continue
        seconds = max(bench.settings.seconds, WINDOW_SECONDS)
        try:
            joules = joules_per_image(gpu, networks, bench.batches(batch_size), seconds)
        except NvmlUnavailable as error:
            _missing(bench, batch_size, str(error))
            return
        values = {who: sum(windows) / len(windows) for who, windows in joules.items()}
        conditions = bench.conditions | {"batch_size": batch_size}
        bench.rows.add("energy_j", values[STUDENT], conditions, joules[STUDENT])
        bench.rows.add_ratio("energy_ratio", values, conditions, why)
        return


def joules_per_image(
    gpu: Gpu,
    networks: Mapping[str, Network],
    batches: Sequence[Tensor],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, list[float]]:
    """Joules an image of each network, window by window, in alternation.

    Idle power is read first, after a rest, with the networks in the device's memory: that is what it draws between two
    requests.

    Args:
        batches: run in turn, whole passes over all of them.
        seconds: of each window at least.

    Raises:
        NvmlUnavailable: if the counter cannot be read.
    """
    device = batches[0].device

    def now() -> float:
        """The time at which all work so far is done; launching runs ahead of a GPU."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def counters() -> tuple[float, float]:
        end = now()
        return gpu.joules(), end

    sleep(SETTLE_SECONDS)
    joules, start = counters()
    sleep(seconds)
    joules_after, end = counters()
    idle_watts = (joules_after - joules) / (end - start)

    found: dict[str, list[float]] = {who: [] for who in networks}
    names = list(networks)
    for _ in range(ROUNDS):
        for who in names:
            joules, start = counters()
            images = 0
            while now() - start < seconds:
                with torch.inference_mode():
                    for batch in batches:
                        networks[who](batch)
                        images += len(batch)
            joules_after, end = counters()
            found[who].append((joules_after - joules - idle_watts * (end - start)) / images)
        names.reverse()
    return found


def _counter(device: torch.device) -> Gpu:
    if device.type != "cuda":
        raise NvmlUnavailable("the device is a CPU; only GPUs with NVML tell their energy")
    gpu = gpu_of(device)
    gpu.joules()
    return gpu


def _missing(bench: Bench, batch_size: int, reason: str) -> None:
    for name in ENERGIES:
        bench.rows.add(name, None, bench.conditions | {"batch_size": batch_size}, reason=reason)
