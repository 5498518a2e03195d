"""A search on a real cluster: killed in the middle, run again, and nothing computed twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.local import LocalStore
from tests.chaos.processes import kill, reaper, strays

pytestmark = [pytest.mark.ray, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
SPEC = {
    "name": "searched",
    "data": {"kind": "sample"},
    "student": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 3},
    },
    "stages": [{"name": "student", "strategies": [{"name": "token_merging", "r": 0}], "training": {"epochs": 9}}],
    "search": {
        "algorithm": "optuna",
        "trials": 6,
        "space": {
            "stages.student.training.optimizer.lr": {"loguniform": [1e-5, 1e-1]},
            "stages.student.strategies.token_merging.r": {"int": [0, 4]},
        },
        "objectives": [{"metric": "top1"}, {"metric": "macs"}],
        "scheduler": {"asha": {"reduction_factor": 2}},
    },
    "resources": {"lanes": 2, "cpus_per_worker": 1},
}


def searching(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    root = folder / "artefacts"
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "storage": {"root": str(root)}}, sort_keys=False), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.execution.searching", str(spec), str(root), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def starts(folder: Path) -> dict[str, list[int]]:
    """Stage → the epochs from which it was run."""
    found: dict[str, list[int]] = {}
    for digest, epoch in re.findall(r"ran (\w+) from (\d+) in \d+", (folder / "ran.txt").read_text()):
        found.setdefault(digest, []).append(int(epoch))
    return found


def test_a_search_is_killed_and_goes_on(tmp_path: Path) -> None:
    with reaper():
        before = frozenset(strays(tuple))
        first = searching(tmp_path, "--die")
        assert first.wait(timeout=140) == -signal.SIGKILL
        kill(*strays(lambda: before).values())  # workers would live on for some seconds, and might finish
    store = LocalStore(tmp_path / "artefacts")
    saved: dict[str, int] = {}
    for _, digest, epoch in (name.split("/") for name in store.names("progress")):
        saved[digest] = max(saved.get(digest, 0), int(epoch))
    assert max(saved.values()) >= 2
    begun = starts(tmp_path)
    assert set(map(tuple, begun.values())) == {(0,)}

    second = searching(tmp_path)
    out, _ = second.communicate(timeout=280)
    assert second.returncode == 0, out
    ended = json.loads(out.splitlines()[-1])
    assert ended["failed"] == {}
    assert ended["judged"] == 6
    assert len(ended["trials"]) <= 6
    assert set(ended["evidence"]) <= set(ended["trials"])
    assert all("which the best half of" in text for text in ended["evidence"].values())
    committed = [name.rsplit("/", 1)[1] for name in store.names("stages")]
    assert len(committed) == 2 * (len(ended["trials"]) - len(ended["evidence"])), "training and measurement"
    assert len(list(store.names("searches"))) >= 12, "six proposals, six verdicts"

    after = starts(tmp_path)
    assert all(epochs in ([0], [0, saved.get(digest, 0)]) for digest, epochs in after.items() if digest in begun)
    assert all(epochs == [0] for digest, epochs in after.items() if digest not in begun)
    assert any(epochs[1:] and epochs[1] > 0 for epochs in after.values()), "what was killed went on from where it was"
    assert len(after) == len(ended["trials"])
