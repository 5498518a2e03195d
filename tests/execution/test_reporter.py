"""A worker's line to the queue."""

from __future__ import annotations

import time
from collections.abc import Collection

import pytest

from orchestrator.execution.lane import explain
from orchestrator.execution.reporter import Reporter
from orchestrator.training.interface import Progress


def test_everything_but_superseded_steps_arrives() -> None:
    sent: list[Progress] = []

    def beat(progress: Collection[Progress]) -> bool:
        sent.extend(progress)
        return False

    with Reporter(beat) as reporter:
        for i in range(50):
            reporter.report(Progress("step", "d", step=i))
        reporter.report(Progress("epoch", "d", epoch=1))
        reporter.report(Progress("step", "d", step=50))
        assert not reporter.should_stop()
    assert [(p.kind, p.step) for p in sent if p.kind == "epoch" or p.step >= 49] == [
        ("step", 49),
        ("epoch", 0),
        ("step", 50),
    ]


def test_the_wish_to_stop_arrives_without_asking() -> None:
    with Reporter(lambda progress: True) as reporter:
        until = time.monotonic() + 5
        while not reporter.should_stop() and time.monotonic() < until:
            time.sleep(0.01)
        assert reporter.should_stop()


def test_a_queue_that_is_gone_stops_the_stage() -> None:
    calls = 0

    def beat(progress: Collection[Progress]) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("gone")
        return False

    with Reporter(beat) as reporter:
        time.sleep(0.6)
        assert reporter.should_stop()


def test_reasons_are_for_people() -> None:
    with pytest.raises(ValueError, match="too large") as wrong:
        raise ValueError("`r` is too large")
    assert explain(wrong.value).startswith("`r` is too large (ValueError in tests/execution/test_reporter.py:")
    with pytest.raises(KeyError) as unforeseen:
        raise KeyError("nobody foresaw this")
    assert explain(unforeseen.value).splitlines()[-1] == "KeyError: 'nobody foresaw this'"

    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    assert "training.micro_batch" in explain(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
