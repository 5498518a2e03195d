"""Throughput and latency, of a network and its baseline in alternation.

Timing A and then B measures the machine's drift as much as the networks. Here both run in one process, in short blocks
in the order A B B A A B B A …, on the same images, until the time is used up; ratios are those of neighbouring blocks.

A network whose cost depends on its input runs on whole passes over its images, so that the mix of images is the data's.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Network = Callable[[Tensor], object]

STEADY = 0.05
"""Warm-up ends when the medians of the last and the last but one three calls differ by less than this share."""
BLOCKS = 50
"""Blocks of each network that a timed quantity is divided into, as far as single calls are short enough. Short blocks
make close neighbours, and the closer in time two blocks are, the less can have changed between them."""
MIN_BLOCKS = 6
"""Blocks of each network even when that takes longer than the time given; fewer tell nothing of their own spread."""
STRETCH = 3
"""Times the time given that may be spent until it is enough."""


class DoesNotFit(RuntimeError):
    """The memory does not hold this batch. Recorded as the result; a smaller batch is never taken instead."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(f"does not fit at batch {batch_size}")


@dataclass(frozen=True)
class Block:
    """Consecutive calls of one network."""

    calls: int
    seconds: tuple[float, ...]
    """Time of each call if they were timed one by one, otherwise of groups of them."""

    @property
    def total(self) -> float:
        """Time of all calls in seconds."""
        return math.fsum(self.seconds)


def batches_of(images: Tensor, batch_size: int, *, varied: bool) -> list[Tensor]:
    """Batches that cover all images in their order, wrapping around; or, if not `varied`, the first alone."""
    num = math.ceil(len(images) / batch_size) if varied else 1
    if num * batch_size == len(images):
        return list(images.split(batch_size))
    index = torch.arange(num * batch_size, device=images.device) % len(images)
    return [images.index_select(0, rows) for rows in index.split(batch_size)]


def whole_passes(blocks: Sequence[Block], num_batches: int) -> list[Block]:
    """Join neighbouring blocks until each has run all batches equally often, so that every one saw the same images."""
    joined: list[Block] = []
    for block in blocks:
        if joined and joined[-1].calls % num_batches:
            last = joined.pop()
            block = Block(last.calls + block.calls, last.seconds + block.seconds)
        joined.append(block)
    return joined


def time_alternately(
    networks: Mapping[str, Network],
    batches: Sequence[Tensor],
    seconds: float,
    *,
    one_by_one: bool,
    enough: Callable[[Mapping[str, Sequence[Block]]], bool] = lambda blocks: True,
    between: Callable[[], None] = lambda: None,
) -> dict[str, list[Block]]:
    """Time networks in alternation, after warming each up.

    It ends with the time given, but not before each network has `MIN_BLOCKS` blocks and has run all batches equally
    often. Until the blocks are `enough` it goes on, up to `STRETCH` times as long.

    Args:
        batches: run in turn.
        seconds: time for all networks together, without warm-up.
        one_by_one: time every call (latency) and not blocks of calls (throughput).
        enough: asked when the time given is over, and after each further half of it.
        between: called between blocks, while no clock runs.

    Returns:
        Network → its blocks; equally many for all networks, and the same batches in blocks of the same place.
    """
    device = batches[0].device
    with torch.inference_mode(), _no_garbage_collection():
        per_call = {name: warm_up(network, batches, seconds / 4) for name, network in networks.items()}
        budget = seconds / (BLOCKS * len(networks) * max(per_call.values()))
        calls = calls_in_block(budget, len(batches))
        turns = {name: _turns(network, batches) for name, network in networks.items()}
        blocks: dict[str, list[Block]] = {name: [] for name in networks}
        names = list(networks)
        spent, taken, until = 0.0, 0, seconds
        while spent < until or taken < MIN_BLOCKS or taken * calls % len(batches):
            for name in names:
                blocks[name].append(Block(calls, _timed(turns[name], calls, device, one_by_one)))
                spent += blocks[name][-1].total
            names.reverse()
            taken += 1
            between()
            if spent >= until and until < STRETCH * seconds and not enough(blocks):
                until = max(until, spent) + seconds / 2
    return blocks


def calls_in_block(budget: float, num_batches: int) -> int:
    """Calls in a block: about `budget`, and such that blocks end where passes over the batches end."""
    if budget >= num_batches:
        return int(budget) // num_batches * num_batches
    return max(n for n in range(1, num_batches + 1) if num_batches % n == 0 and n <= max(budget, 1))


def warm_up(network: Network, batches: Sequence[Tensor], limit_s: float) -> float:
    """Call a network until its time is steady, or `limit_s` is used up. Returns seconds a call.

    The first call, which may compile, does not count towards the limit.
    """
    device = batches[0].device
    turn = _turns(network, batches)
    _timed(turn, 1, device, one_by_one=True)
    times: list[float] = []
    while True:
        times += _timed(turn, 1, device, one_by_one=True)
        recent = statistics.median(times[-3:])
        if len(times) >= 6 and abs(recent / statistics.median(times[-6:-3]) - 1) < STEADY:
            return recent
        if len(times) >= 3 and math.fsum(times) > limit_s:
            return recent


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on CPU torch has no type of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def out_of_memory_as_result(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into `DoesNotFit`, and free what the attempt held."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames hold the tensors that did fit
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise DoesNotFit(batch_size) from None


def _turns(network: Network, batches: Sequence[Tensor]) -> Iterator[Callable[[], object]]:
    """Calls of the network, one batch after the other, without end."""
    while True:
        for batch in batches:
            yield lambda batch=batch: network(batch)  # type: ignore[misc]  # bound now


def _timed(
    turns: Iterator[Callable[[], object]], calls: int, device: torch.device, one_by_one: bool
) -> tuple[float, ...]:
    spans = [1] * calls if one_by_one else [calls]
    clock = _seconds_on_gpu if device.type == "cuda" else _seconds_on_cpu
    return tuple(clock([next(turns) for _ in range(span)]) for span in spans)


def _seconds_on_cpu(calls: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def _seconds_on_gpu(calls: Sequence[Callable[[], object]]) -> float:
    """From the launch of the first kernel to the end of the last, by the device's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
