"""Rows made of known blocks, so that every number can be computed by hand; and what cannot be timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from orchestrator.measurement import timed, timing
from orchestrator.measurement.conditions import Settings
from orchestrator.measurement.guard import Seen
from orchestrator.measurement.images import random_images
from orchestrator.measurement.measure import Measurement
from orchestrator.measurement.network import Recipe
from specs.metrics import MetricRow
from specs.model import ModelSpec

pytestmark = pytest.mark.alone

MODEL = ModelSpec(
    model="vit_tiny_patch16_224", args={"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
)


def rows(*wanted: str, compile: bool = False, attempts: int = 1, **settings: object) -> dict[str, MetricRow]:
    taken = Measurement(
        student=Recipe(model=MODEL),
        baseline=Recipe(model=MODEL),
        no_baseline="",
        images=random_images(4, (3, 16, 16)),
        images_are="random images",
        settings=Settings(
            torch.device("cpu"), batch_sizes=(4,), compile=compile, attempts=attempts, **{"seconds": 0.02, **settings}
        ),
        wanted=frozenset(wanted or timed.TIMED),
    ).run()
    return {row.name: row for row in taken}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[timing.Block]]]:
    """Blocks that the clock says it took, attempt by attempt."""
    attempts: list[dict[str, list[timing.Block]]] = []
    monkeypatch.setattr(timing, "time_alternately", lambda *_, **__: attempts.pop(0))
    monkeypatch.setattr("orchestrator.measurement.watch.CpuWatch.seen", lambda self: Seen(foreign=0.0))
    return attempts


def calls(*milliseconds: float) -> timing.Block:
    return timing.Block(len(milliseconds), tuple(ms / 1000 for ms in milliseconds))


def test_latency(clock: list[dict[str, list[timing.Block]]]) -> None:
    student = [calls(*range(10 * i + 1, 10 * i + 11)) for i in range(10)]  # 1, 2, …, 100 ms
    baseline = [calls(*(2 * 1000 * s for s in block.seconds)) for block in student]
    clock.append({"student": student, "baseline": baseline})
    found = rows(*timed.LATENCIES, max_drift=1e6)
    assert found["latency_ms"].value == pytest.approx(50.5)
    assert found["latency_p90_ms"].value == pytest.approx(90.1)  # numpy's linear rule: 1 + 0.90 · 99
    assert found["latency_p95_ms"].value == pytest.approx(95.05)
    assert found["latency_p99_ms"].value == pytest.approx(99.01)
    assert found["latency_ratio"].value == pytest.approx(0.5)
    assert found["latency_ratio"].interval == pytest.approx((0.5, 0.5))
    assert found["latency_ms"].interval is None, "an absolute time has none: it would describe this run alone"


def test_percentiles_need_calls(clock: list[dict[str, list[timing.Block]]]) -> None:
    assert [timed.calls_needed(p) for p in (50, 90, 95, 99)] == [2, 10, 20, 100]
    clock.append({who: [calls(1.0)] * 19 for who in ("student", "baseline")})
    found = rows(*timed.LATENCIES)
    assert found["latency_p90_ms"].value == pytest.approx(1.0)
    assert (found["latency_p95_ms"].value, found["latency_p99_ms"].value) == (None, None)
    assert found["latency_p99_ms"].reason == "needs at least 100 calls; 19 fitted into the time"


def test_throughput_ratio_is_that_of_neighbours(clock: list[dict[str, list[timing.Block]]]) -> None:
    """The machine becomes three times slower and fast again; each pair has the same ratio."""
    slowness = [1, 1, 3, 3, 1, 1, 1]
    student = [timing.Block(2, (0.010 * s,)) for s in slowness]
    baseline = [timing.Block(2, (0.025 * s,)) for s in slowness]
    clock.append({"student": student, "baseline": baseline})
    found = rows(*timed.THROUGHPUTS)
    assert found["throughput"].value == pytest.approx(2 * 4 / 0.010)
    assert found["throughput_ratio"].value == pytest.approx(2.5)
    assert found["throughput_ratio"].interval == pytest.approx((2.5, 2.5))
    assert len(found["throughput_ratio"].samples) == 7


def test_a_drifting_baseline_is_timed_again_and_then_marked(clock: list[dict[str, list[timing.Block]]]) -> None:
    steady = [timing.Block(1, (0.01,))] * 6
    slower = steady[:3] + [timing.Block(1, (0.02,))] * 3
    clock += [{"student": steady, "baseline": slower}, {"student": steady, "baseline": steady}]
    for row in rows(*timed.THROUGHPUTS, attempts=2).values():
        assert row.unreliable is None
        assert (row.summary["attempts"], row.summary["baseline_drift_percent"]) == (2, 0)
        assert "attempts" not in row.conditions
    clock += [{"student": steady, "baseline": slower}] * 2
    for row in rows(*timed.THROUGHPUTS, attempts=2).values():
        assert row.value is not None, "the number stays"
        assert "drifted by -50.0 %" in str(row.unreliable)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_runs_or_says_why(precision: str) -> None:
    row = rows("throughput", precision=precision)["throughput"]
    assert row.conditions["precision"] == precision
    assert (row.value is None) == (row.reason is not None)
    assert row.value is not None or precision == "fp16", "kernels of fp16 may be missing on CPU"


def test_what_cannot_be_compiled_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compilation itself is left to torch: it takes a minute. Here the compiler is not there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with inductor.patch({"cpp.cxx": ("/nonexistent/c++",)}):
        found = rows("throughput", "throughput_ratio", compile=True)
    assert found["throughput"].value is None
    assert "install it, or leave `compile` at `false`" in str(found["throughput"].reason)
    assert found["throughput"].conditions["compile"] is True
    assert str(found["throughput_ratio"].reason).startswith("the student: ")


def test_time_goes_on_until_the_ratio_is_sure() -> None:
    assert timed._narrow(None)
    assert timed._narrow([[2.0]] * 6)
    assert not timed._narrow([[2.0]] * 5), "no interval"
    assert not timed._narrow([[1.0], [2.0]] * 6)
