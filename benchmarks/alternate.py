"""Timing in alternation, for the scripts beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def seconds_each(
    networks: Mapping[str, Callable[[Tensor], object]], images: Tensor, rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of one pass over a batch: network → one number a round, in the order A B B A …, after a warm-up.

    Args:
        calls: passes that one number is the mean of.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name in list(networks)[:: 1 if turn % 2 else -1]:
                elapsed = timed(lambda network=networks[name]: [network(images) for _ in range(calls)], images.device)
                if turn:
                    seconds[name].append(elapsed / calls)
    return seconds


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, all kernels finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
