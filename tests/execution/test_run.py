"""The whole line: `slimvit run` on real images, twice, and what it says when a stage cannot be run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local import LocalStore

ROOT = Path(__file__).resolve().parents[2]
SPEC = """
name: tiny
data: {kind: sample, name: mnist5k, limit_train: 320, limit_val: 100}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 48, depth: 2, num_heads: 3}}
stages:
  - {name: teacher, training: {epochs: 2}}
  - {name: student, teacher: {stage: teacher}, training: {epochs: 1}}
matrix:
  axes:
    distill: {strategies: {none: [], soft: [{name: response, kind: soft}]}}
measurement:
  batch_sizes: [1, 8]
  seconds: 0.1
  images: 8
  baseline: {model: vit_tiny_patch16_224, args: {patch_size: 7, depth: 1}}
"""
MODULES = "import sys; print('LOADED', [m for m in ('ray', 'torch', 'mlflow') if m in sys.modules])"


def slimvit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which says at its end which heavy modules it loaded."""
    code = f"import sys, atexit; atexit.register(lambda: exec({MODULES!r})); from orchestrator.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.ray
def test_run_to_the_comparison_and_once_more(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    first = slimvit(tmp_path, "run", "spec.yaml", "--plain")
    assert first.returncode == 0, first.stdout + first.stderr
    for words in ("Ray dashboard http://127.0.0.1:", "MLflow", "sqlite:///mlflow.db", "5 stages to run", "(5/5)"):
        assert words in first.stdout
    assert "distill=soft" in first.stdout
    assert (tmp_path / "reports" / "tiny.html").is_file()

    store = LocalStore(tmp_path / "slimvit-store")
    assert len(list(store.names("stages"))) == 5
    assert list(store.names("progress")) == []
    (plan,) = store.names("plans/tiny")
    assert {p.name for p in store.fetch(plan).iterdir()} == {"plan.json", "experiment.json", "COMMIT.json"}

    second = slimvit(tmp_path, "run", "spec.yaml", "--plain")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "5 done, 0 to run" in second.stdout
    assert "distill=soft" in second.stdout
    assert "LOADED []" in second.stdout, "nothing to do: neither Ray, torch nor MLflow is needed"
    assert list(store.names("plans/tiny")) == [plan]


@pytest.mark.ray
def test_what_the_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    refused = slimvit(tmp_path, "run", "spec.yaml", "--plain", "--set", "resources.cpus_per_worker=4096")
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "4096 CPU" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "file").write_text("")
    refused = slimvit(tmp_path, "run", "spec.yaml", "--set", "storage.root=file/store")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert refused.stderr.startswith("error: the artefact store")
