"""Runs as jobs of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import machine
from orchestrator.errors import ResourceError, UsageError
from orchestrator.execution import jobs
from specs.cluster import LocalCluster

SPEC = """
name: submitted
data: {kind: sample, name: mnist5k, limit_train: 640, limit_val: 100}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 48, depth: 2, num_heads: 3}}
stages: [{name: train, training: {epochs: 2000, checkpoint_every_steps: 5}}]
storage: {root: store}
tracking: {uri: "sqlite:///record.db"}
"""


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a cluster as `slimvit cluster up` starts it: it takes jobs whatever other clusters are on the machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    try:
        yield machine.start("jobs", LocalCluster(kind="local", cpus=2, gpus=0, dashboard_port=0)).dashboard
    finally:
        machine.stop("jobs")


@pytest.mark.ray
@pytest.mark.long
def test_submit_follow_stop(dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    job = jobs.submit(Path("spec.yaml"), [], dashboard)
    assert job.startswith("slimvit-submitted-")
    assert jobs.submit(Path("spec.yaml"), [], dashboard) == job, "the same spec finds the same job"

    text = ""
    for part in jobs.logs(job, dashboard, follow=True):
        text += part
        if "epoch 2/2000" in text:
            break
    assert "epoch 2/2000" in text, text
    assert jobs.status(job, dashboard).startswith(f"{job} RUNNING")

    with pytest.raises(UsageError, match=f"did you mean `{job}`"):
        jobs.status(job[:-1], dashboard)
    assert "is stopping" in jobs.stop(job, dashboard)
    until = time.monotonic() + 40
    while "STOPPED" not in (state := jobs.status(job, dashboard)):
        assert time.monotonic() < until, state
        time.sleep(0.5)
    assert "Submit the same spec again" in state
    assert "the progress of the others is saved" in "".join(jobs.logs(job, dashboard, follow=False))
    assert list((tmp_path / "store" / "progress").glob("*/*/COMMIT.json")), "it saved before it ended"

    again = jobs.submit(Path("spec.yaml"), [], dashboard)
    assert again == f"{job}-2"
    jobs.stop(again, dashboard)


def test_what_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no Ray dashboard answers at"):
        jobs.status("slimvit-x", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="http://HOST:8265"):
        jobs.status("slimvit-x", "127.0.0.1:6379")


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = jobs._with_absolute_paths(
        {
            "storage": {"root": "store"},
            "tracking": {"uri": "sqlite:///record.db"},
            "data": {"root": "/images"},
            "stages": [{"init": {"checkpoint": "weights.safetensors"}}],
        }
    )
    assert data == {
        "storage": {"root": f"{tmp_path}/store"},
        "tracking": {"uri": f"sqlite:///{tmp_path}/record.db"},
        "data": {"root": "/images"},
        "stages": [{"init": {"checkpoint": f"{tmp_path}/weights.safetensors"}}],
    }
    server = {"tracking": {"uri": "http://mlflow:5000"}}
    assert jobs._with_absolute_paths(server) == server
