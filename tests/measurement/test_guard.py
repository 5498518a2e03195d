"""The policy, the second attempt, and what a really busy machine looks like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from orchestrator.measurement.guard import Guarded, Limits, Seen, drift, guarded, verdict
from orchestrator.measurement.nvml import NvmlUnavailable
from orchestrator.measurement.watch import (
    MIN_SECONDS,
    CpuWatch,
    GpuWatch,
    own_seconds,
    waiting_percent,
    waits,
    watch_of,
)

pytestmark = pytest.mark.alone

LIMITS = Limits(max_drift=5.0, max_foreign=10.0)


@pytest.mark.parametrize(
    "seen", [Seen(), Seen(drift=5.0, foreign=10.0, strangers=0), Seen(drift=-5.0), Seen(foreign=0.0)]
)
def test_quiet(seen: Seen) -> None:
    assert verdict(seen, LIMITS) is None


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen(drift=-5.1), "drifted by -5.1 %"),
        (Seen(drift=5.1), "drifted by +5.1 %"),
        (Seen(waiting=5.6), "waited for a processor during 6 % of the time"),
        (Seen(foreign=10.6), "used 11 % of the machine's processor time"),
        (Seen(strangers=1), "another process computed"),
        (Seen(strangers=3), "3 other processes computed"),
        (Seen(throttled=("hardware thermal slowdown",)), "throttled itself (hardware thermal slowdown)"),
    ],
)
def test_disturbed(seen: Seen, words: str) -> None:
    assert words in str(verdict(seen, LIMITS))


def test_all_reasons_are_said() -> None:
    said = str(verdict(Seen(drift=9.0, foreign=90.0, strangers=2, throttled=("power brake",)), LIMITS))
    assert said.count("; ") == 3


def test_drift_compares_the_outer_thirds() -> None:
    assert drift([10, 10, 10, 99, 0, 99, 11, 11, 11]) == pytest.approx(10.0)
    assert drift([10, 10, 9, 99, 0, 9, 1, 9]) == pytest.approx(-50.0), "2 of 8, and a median of two is their mean"
    assert drift([10, 12]) is None


class Still:
    """A watch that sees what it is told."""

    def __init__(self, seen: Seen) -> None:
        self.told = seen

    def look(self) -> None: ...

    def seen(self) -> Seen:
        return self.told


def run(attempts: int, *seen: Seen, speeds: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Guarded[int]:
    watches: Iterator[Still] = map(Still, seen)
    numbers = iter(range(100))
    return guarded(lambda watch: next(numbers), lambda n: speeds, lambda: next(watches), LIMITS, attempts)


def test_a_disturbed_attempt_is_repeated() -> None:
    busy, quiet = Seen(foreign=60.0), Seen(foreign=1.0)
    first = run(3, quiet)
    assert (first.result, first.attempts, first.unreliable) == (0, 1, None)
    second = run(3, busy, quiet)
    assert (second.result, second.attempts, second.unreliable) == (1, 2, None)
    assert second.observations == {"attempts": 2.0, "baseline_drift_percent": 0.0, "foreign_cpu_percent": 1.0}
    never = run(2, busy, busy)
    assert (never.result, never.attempts) == (1, 2)
    assert "60 %" in str(never.unreliable)
    assert "2 attempts" in str(never.unreliable)
    assert "attempts" not in str(run(1, busy).unreliable)


def test_drift_of_the_attempt_is_judged() -> None:
    drifting = run(1, Seen(), speeds=(100.0, 97.0, 94.0))
    assert drifting.seen.drift == pytest.approx(-6.0)
    assert "-6.0 %" in str(drifting.unreliable)


SPIN = "import time; end = time.time() + 20\nwhile time.time() < end: pass"
LEAVE_IT = (
    "import subprocess, sys; quiet = subprocess.DEVNULL; "
    "print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=quiet, stderr=quiet).pid)"
)


def test_a_busy_neighbour_is_seen() -> None:
    """The neighbour's parent has ended, so that it is no child of this process."""
    alone = foreign_while_working()
    left = subprocess.run([sys.executable, "-c", LEAVE_IT, SPIN], capture_output=True, text=True, check=True)
    neighbour = int(left.stdout)
    try:
        watch = CpuWatch()
        time.sleep(3 * MIN_SECONDS)
        beside = watch.seen().foreign
    finally:
        os.kill(neighbour, signal.SIGKILL)
    assert alone is not None
    assert beside is not None
    one = 100 / (os.cpu_count() or 1)
    assert beside > 0.5 * one, "it had most of one processor"
    assert alone < 100 - 0.5 * one, "what this process uses is not foreign"
    assert "processor time" in str(verdict(Seen(foreign=beside), Limits(max_foreign=0.4 * one)))


def foreign_while_working() -> float | None:
    watch = CpuWatch()
    until = time.monotonic() + 2 * MIN_SECONDS
    while time.monotonic() < until:
        pass
    return watch.seen().foreign


def test_children_are_not_foreign() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        before, started = own_seconds(), time.monotonic()
        time.sleep(1)
        alive = own_seconds() - before
        elapsed = time.monotonic() - started
    finally:
        child.kill()
        child.wait()
    assert 0.2 * elapsed < alive < 1.2 * elapsed
    assert own_seconds() - before >= alive - 0.05, "also after it has ended"


def test_a_small_machine_leaves_room_for_the_daemons_of_the_cluster() -> None:
    assert Limits.on(2, 5.0).max_foreign == 35.0
    assert Limits.on(64, 5.0).max_foreign == pytest.approx(10.78, abs=0.01)


def test_threads_that_wait_for_a_processor_are_seen() -> None:
    """Two busy processes on one processor: this one waits about half of the time."""
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    neighbour = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {one})\n{SPIN}"])
    try:
        os.sched_setaffinity(0, one)
        time.sleep(0.5)  # until the neighbour spins
        before, started = waits(), time.monotonic()
        while time.monotonic() < started + 1:
            pass
        waited = waiting_percent(before, waits(), time.monotonic() - started, threads=1)
    finally:
        os.sched_setaffinity(0, allowed)
        neighbour.kill()
        neighbour.wait()
    assert waited is not None
    assert 20 < waited < 95


def test_the_threads_that_wait_longest_are_those_that_compute() -> None:
    before, after = {"1": 1.0, "2": 0.0, "3": 5.0}, {"1": 1.5, "2": 0.3, "3": 5.0, "4": 0.1}
    assert waiting_percent(before, after, 2.0, threads=2) == pytest.approx(100 * (0.5 + 0.3) / 2 / 2.0)
    assert waiting_percent({}, {}, 2.0, threads=2) is None


def test_too_short_to_tell() -> None:
    assert CpuWatch().seen().foreign is None


class FakeGpu:
    """Stands in for a GPU, which this test cannot count on."""

    def __init__(self, *answers: tuple[int, set[str]]) -> None:
        self.answers = list(answers)

    def joules(self) -> float:
        raise NvmlUnavailable("not asked")

    def throttling(self) -> set[str]:
        if not self.answers:
            raise NvmlUnavailable("gone")
        return self.answers[0][1]

    def other_processes(self) -> int:
        return self.answers.pop(0)[0]


def test_a_gpu_is_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.measurement.watch.LOOK_EVERY", 0.0)
    watch = GpuWatch(FakeGpu((0, set()), (2, {"power brake"}), (1, {"hardware slowdown"})))
    watch.look()
    watch.look()
    watch.look()  # it has stopped answering
    assert watch.seen() == Seen(strangers=2, throttled=("hardware slowdown", "power brake"))
    assert GpuWatch(None).seen() == Seen()


def test_the_watch_of_a_device() -> None:
    assert isinstance(watch_of(torch.device("cpu"))(), CpuWatch)
