"""The order and bookkeeping of timing; how fast anything is, is not tested."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import pytest
import torch
from torch import Tensor

from orchestrator.measurement import timing
from orchestrator.measurement.samples import MAX_SAMPLES, summary, thinned

pytestmark = pytest.mark.alone


class Recorder:
    """A network that notes who was asked about which images, and works a little."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log = name, log

    def __call__(self, images: Tensor) -> Tensor:
        self.log.append((self.name, int(images[0, 0])))
        return images @ images.T


def batches(count: int) -> list[Tensor]:
    return [torch.full((64, 64), float(i)) for i in range(count)]


def test_blocks_alternate_on_the_same_images() -> None:
    log: list[tuple[str, int]] = []
    networks = {name: Recorder(name, log) for name in "AB"}
    blocks = timing.time_alternately(networks, batches(4), 0.01, one_by_one=False)
    assert len(blocks["A"]) == len(blocks["B"]) >= 1
    assert sum(b.calls for b in blocks["A"]) % 4 == 0, "whole passes"
    timed_calls = sum(b.calls for b in blocks["A"])
    timed = log[-2 * timed_calls :]
    order = [name for i, (name, _) in enumerate(timed) if i == 0 or timed[i - 1][0] != name]
    assert order[:4] == ["A", "B", "A", "B"], "neighbours in A B B A are one run of the same letter"
    for name in "AB":
        assert [image for who, image in timed if who == name] == [i % 4 for i in range(timed_calls)]


def test_latency_times_every_call() -> None:
    log: list[tuple[str, int]] = []
    blocks = timing.time_alternately({"A": Recorder("A", log)}, batches(1), 0.01, one_by_one=True)["A"]
    assert len(blocks) >= timing.MIN_BLOCKS
    assert all(len(b.seconds) == b.calls and b.total > 0 for b in blocks)


@pytest.mark.parametrize(
    ("budget", "num", "calls"), [(10.7, 4, 8), (4, 4, 4), (3.9, 4, 2), (3.9, 6, 3), (0.1, 6, 1), (7, 1, 7)]
)
def test_blocks_end_where_passes_end(budget: float, num: int, calls: int) -> None:
    assert timing.calls_in_block(budget, num) == calls


def test_parts_of_passes_are_joined() -> None:
    parts = [timing.Block(2, (float(i),)) for i in range(4)]
    assert timing.whole_passes(parts, 4) == [timing.Block(4, (0.0, 1.0)), timing.Block(4, (2.0, 3.0))]
    assert timing.whole_passes(parts, 1) == parts


def test_batches_wrap_around() -> None:
    images = torch.arange(5.0)
    assert [b.tolist() for b in timing.batches_of(images, 2, varied=True)] == [[0, 1], [2, 3], [4, 0]]
    assert [b.tolist() for b in timing.batches_of(images, 7, varied=False)] == [[0, 1, 2, 3, 4, 0, 1]]
    assert [b.tolist() for b in timing.batches_of(images[:4], 2, varied=True)] == [[0, 1], [2, 3]]


def test_memory_that_runs_out_is_a_result() -> None:
    with pytest.raises(timing.DoesNotFit, match=r"^does not fit at batch 7$"), timing.out_of_memory_as_result(7):
        torch.empty(10**15)


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="size"), timing.out_of_memory_as_result(7):
        torch.ones(2) + torch.ones(3)


LIMITED = """
import resource, torch
from orchestrator.measurement.timing import DoesNotFit, out_of_memory_as_result
layer = torch.nn.Linear(1000, 1000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
for batch_size in (1, 1_000_000):
    try:
        with out_of_memory_as_result(batch_size), torch.inference_mode():
            layer(torch.zeros(batch_size, 1000))
        print("fits", batch_size)
    except DoesNotFit as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space are Linux's")
def test_a_real_limit() -> None:
    assert resource.RLIMIT_AS is not None
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["fits 1", "does not fit at batch 1000000"]


def test_samples() -> None:
    many = [float(i) for i in range(1001)]
    kept = thinned(many)
    assert len(kept) == MAX_SAMPLES
    assert (kept[0], kept[-1]) == (0.0, 1000.0)
    assert kept == sorted(set(kept))
    assert summary(many) == pytest.approx(
        {"mean": 500, "p5": 50, "p50": 500, "p95": 950, "std": 289.1081, "count": 1001}, rel=1e-6
    )
    assert summary([]) == {}
    assert "std" not in summary([1.0])


def test_it_goes_on_until_it_is_enough() -> None:
    """A call takes far more than its part of the time: six blocks are taken all the same, more if wanted."""
    images = [torch.zeros(1)]
    slow = {"A": lambda _: time.sleep(0.004)}
    least = timing.time_alternately(slow, images, 0.001, one_by_one=True)["A"]
    assert sum(b.calls for b in least) == timing.MIN_BLOCKS
    wanted = timing.time_alternately(slow, images, 0.06, one_by_one=True, enough=lambda blocks: len(blocks["A"]) >= 20)
    assert len(wanted["A"]) >= 20
    given_up = timing.time_alternately(slow, images, 0.02, one_by_one=True, enough=lambda blocks: False)["A"]
    assert 0.02 * timing.STRETCH <= sum(b.total for b in given_up) < 0.04 * timing.STRETCH


def test_between_blocks_no_clock_runs() -> None:
    looks = []

    def look() -> None:
        looks.append(time.sleep(0.01))

    blocks = timing.time_alternately(
        {name: Recorder(name, []) for name in "AB"}, batches(1), 0.001, one_by_one=False, between=look
    )
    assert len(looks) == len(blocks["A"])
    assert sum(b.total for b in blocks["A"]) < 0.01 * len(looks)
