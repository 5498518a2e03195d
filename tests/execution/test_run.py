"""The whole line: `slimvit run` on real images, twice, and what it says when a stage cannot be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore

ROOT = Path(__file__).resolve().parents[2]
SPEC = """
name: tiny
data: {kind: sample, name: mnist5k, limit_train: 320, limit_val: 100}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 48, depth: 2, num_heads: 3}}
stages:
  - {name: teacher, training: {epochs: 2}}
  - {name: student, teacher: {stage: teacher, stored: {top_k: 4}}, training: {epochs: 1}}
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which the spec was run, and what that printed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "spec.yaml").write_text(SPEC)
    return folder, slimvit(folder, "run", "spec.yaml", "--plain")


@pytest.mark.ray
def test_run_to_the_comparison_and_once_more(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = finished
    assert first.returncode == 0, first.stdout + first.stderr
    for words in ("Ray dashboard http://127.0.0.1:", "MLflow", "sqlite:///mlflow.db", "6 stages to run", "(6/6)"):
        assert words in first.stdout
    assert "distill=soft" in first.stdout
    assert (folder / "reports" / "tiny.html").is_file()

    store = LocalStore(folder / "slimvit-store")
    assert len(list(store.names("stages"))) == 6
    assert len(list(store.names("answers"))) == 1
    assert list(store.names("progress")) == []
    (plan,) = store.names("plans/tiny")
    assert {p.name for p in store.fetch(plan).iterdir()} == {"plan.json", "experiment.json", "COMMIT.json"}

    second = slimvit(folder, "run", "spec.yaml", "--plain")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "6 done, 0 to run" in second.stdout
    assert "distill=soft" in second.stdout
    assert "LOADED []" in second.stdout, "nothing to do: neither Ray, torch nor MLflow is needed"
    assert list(store.names("plans/tiny")) == [plan]

    third = slimvit(folder, "run", "spec.yaml", "--plain", "--set", "resources.workers=3")
    assert third.returncode == 0, "finished, so it does not matter that three workers could not share its batches"


@pytest.mark.ray
def test_measured_again_under_other_conditions(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    store = LocalStore(folder / "slimvit-store")
    before, plans = set(store.names("stages")), set(store.names("plans/tiny"))
    command = ("measure", "tiny", "--conditions", "precision=bf16,repeat=1", "--combination", "distill=soft", "--plain")
    done = slimvit(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 stage to run" in done.stdout
    assert "[A]" in done.stdout
    assert "[B]" in done.stdout
    (added,) = set(store.names("stages")) - before
    measured = json.loads((store.fetch(added) / "stage.json").read_text())
    assert (measured["kind"], measured["measurement"]["precision"]) == ("measure", "bf16")
    assert len(set(store.names("plans/tiny")) - plans) == 1

    shown = json.loads(slimvit(folder, "compare", "tiny", "--format", "json").stdout.split("LOADED")[0])
    columns = {column["key"]: column for column in shown["columns"]}
    assert columns["latency_ms"]["differences"]["precision"] == {"A": "fp32", "B": "bf16"}
    assert [row["cells"]["latency_ms"]["group"] for row in shown["rows"]] == ["A", "B"]
    assert not any(row["cells"]["latency_ms"]["best"] for row in shown["rows"]), "nothing is ranked across groups"
    assert len(columns["params"]["groups"]) == 1

    # Once more: nothing to measure, and not one run more in the record.
    runs = recorded(folder)
    assert sum(run.data.tags["slimvit.kind"] == "experiment" for run in runs) >= 2, "the run's and the measurement's"
    again = slimvit(folder, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "'ray'" not in again.stdout
    assert {run.info.run_id for run in recorded(folder)} == {run.info.run_id for run in runs}


def recorded(folder: Path) -> list[Any]:
    """All runs in the folder's record."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


@pytest.mark.ray
def test_what_the_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    refused = slimvit(tmp_path, "run", "spec.yaml", "--plain", "--set", "resources.cpus_per_worker=4096")
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "4096 CPU" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(LocalStore(tmp_path / "slimvit-store").names("plans")) == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "file").write_text("")
    refused = slimvit(tmp_path, "run", "spec.yaml", "--set", "storage.root=file/store")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert refused.stderr.startswith("error: the artefact store")
