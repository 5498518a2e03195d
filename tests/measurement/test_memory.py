"""Peak memory in a fresh process, with a network whose peak is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.measurement.growth import MemoryUnreadable, reset_peak
from orchestrator.measurement.memory import InferenceJob, Probe
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.timing import DoesNotFit
from specs.model import ModelSpec


def can_read() -> bool:
    try:
        reset_peak()
    except MemoryUnreadable:
        return False
    return sys.platform.startswith("linux")


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not can_read(), reason="this platform does not tell the peak of a process"),
]


def job(model: ModelSpec, batch_size: int, **rest: object) -> InferenceJob:
    return InferenceJob(recipe=Recipe(model=model), batch_size=batch_size, input_shape=(3, 64, 64), **rest)


def test_peak_of_a_vit(toy_vit: ModelSpec) -> None:
    """The MLP's hidden layer and its activation are the largest tensors alive at one time; the rest is smaller."""
    batch_size = 512
    probe = Probe({"large": job(toy_vit, batch_size), "small": job(toy_vit, 1)})
    large, small = probe.result("large"), probe.result("small")
    tokens = batch_size * 65 * 48 * 4
    at_least = tokens + 2 * 4 * tokens  # residual stream, hidden layer before and after GELU
    assert at_least < large.activations < 3 * at_least
    assert small.activations < large.activations / 10
    assert large.weights == 4 * sum(p.numel() for p in Recipe(model=toy_vit).build().network.parameters())
    assert large.peak == large.weights + large.activations


def test_what_does_not_fit_is_said(toy_vit: ModelSpec) -> None:
    with pytest.raises(DoesNotFit, match="does not fit at batch 2000000000000"):
        Probe({"student": job(toy_vit, 2_000_000_000_000)}).result("student")


def test_a_broken_probe_says_why(toy_vit: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the memory probe failed.*missing"):
        Probe({"student": job(toy_vit, 1, images=tmp_path / "missing")}).result("student")


def test_a_probe_can_be_stopped(toy_vit: ModelSpec) -> None:
    probe = Probe({"student": job(toy_vit, 1)})
    probe.stop()
    assert probe.process.poll() is not None
