"""Energy by a simulated counter: no GPU is needed. What a real counter says is not tested here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.measurement import energy
from orchestrator.measurement.conditions import Settings
from orchestrator.measurement.images import random_images
from orchestrator.measurement.measure import Measurement
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.nvml import NvmlUnavailable
from specs.metrics import MetricRow
from specs.model import ModelSpec

pytestmark = pytest.mark.alone

IDLE_WATTS = 70.0
MODEL = ModelSpec(
    model="vit_tiny_patch16_224", args={"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
)


class SimulatedGpu:
    """Draws idle power all the time, and what the networks add."""

    def __init__(self) -> None:
        self.time = self.added = 0.0

    def joules(self) -> float:
        return IDLE_WATTS * self.time + self.added

    def throttling(self) -> set[str]:
        return set()

    def other_processes(self) -> int:
        return 0

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def network(self, joules: float, seconds: float) -> object:
        """A network that takes so much for each image."""

        def call(images: Tensor) -> None:
            self.time += seconds * len(images)
            self.added += joules * len(images)

        return call


def test_idle_power_is_taken_off() -> None:
    gpu = SimulatedGpu()
    networks = {"student": gpu.network(0.2, 0.004), "baseline": gpu.network(0.5, 0.007)}
    batches = [torch.zeros(8, 1), torch.zeros(3, 1)]
    found = energy.joules_per_image(gpu, networks, batches, 2.0, clock=gpu.clock, sleep=gpu.sleep)  # type: ignore[arg-type]
    assert found == {"student": pytest.approx([0.2, 0.2]), "baseline": pytest.approx([0.5, 0.5])}
    assert gpu.time >= energy.SETTLE_SECONDS + 2.0 + 4 * 2.0, "rest, idle window, two windows of each"


def rows(batch_sizes: tuple[int, ...]) -> dict[tuple[str, object], MetricRow]:
    taken = Measurement(
        student=Recipe(model=MODEL),
        baseline=Recipe(model=MODEL),
        no_baseline="",
        images=random_images(4, (3, 16, 16)),
        images_are="random images",
        settings=Settings(torch.device("cpu"), batch_sizes=batch_sizes, seconds=0.02),
        wanted=frozenset(energy.ENERGIES),
    ).run()
    return {(row.name, row.conditions["batch_size"]): row for row in taken}


def test_a_cpu_does_not_tell() -> None:
    for row in rows((1, 4)).values():
        assert row.value is None
        assert "CPU" in str(row.reason)
    assert set(rows((1, 4))) == {("energy_j", 4), ("energy_ratio", 4)}


def test_rows_at_the_largest_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real networks and a counter of 5 W beyond idle; windows are short."""

    class Counter(SimulatedGpu):
        calls = 0

        def joules(self) -> float:
            Counter.calls += 1
            return float(Counter.calls)

    monkeypatch.setattr(energy, "_counter", lambda device: Counter())
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.02)
    monkeypatch.setattr(energy, "SETTLE_SECONDS", 0.0)
    huge = 2_000_000_000_000
    found = rows((2, huge))
    assert found["energy_j", huge].reason == f"does not fit at batch {huge}"
    taken = found["energy_j", 2]
    assert taken.value is not None
    assert len(taken.samples) == energy.ROUNDS
    assert found["energy_ratio", 2].value is not None
    assert "baseline" in found["energy_ratio", 2].conditions


def test_a_counter_that_stops_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(SimulatedGpu):
        def joules(self) -> float:
            raise NvmlUnavailable("nvmlDeviceGetTotalEnergyConsumption answers: Not Supported")

    monkeypatch.setattr(energy, "_counter", lambda device: Silent())
    monkeypatch.setattr(energy, "SETTLE_SECONDS", 0.0)
    assert {row.reason for row in rows((2,)).values()} == {"nvmlDeviceGetTotalEnergyConsumption answers: Not Supported"}
