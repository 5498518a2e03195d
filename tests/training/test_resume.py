"""A stage that was killed ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.errors import StoreError
from orchestrator.training.evaluate import evaluate
from orchestrator.training.interface import Progress, StageInterrupted, WorkerContext
from strategies import registry

SCRIPT = Path(__file__).with_name("run_stage.py")
ROOT = Path(__file__).parents[2]


def in_a_process(stage: Any, store: Path, scratch: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    file = scratch / "stage.json"
    scratch.mkdir(exist_ok=True)
    file.write_text(stage.model_dump_json())
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(file), str(store), str(scratch), str(kill_at), "0", "1", "-"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def rich_stage(make_stage):
    """A stage with everything that has state: dropout, drop path, mixing, EMA, accumulation, extras, momentum."""
    exits = registry.resolver("early_exit").model_validate({"name": "early_exit", "blocks": (1,)})
    return make_stage(
        args={"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "drop_rate": 0.1},
        epochs=2,
        micro_batch=8,
        ema=0.8,
        clip_grad=1.0,
        label_smoothing=0.1,
        checkpoint_every_steps=3,
        augmentation={"mixup": 0.4, "cutmix": 1.0, "crop_padding": 2, "random_erasing": 0.5},
        strategies=(exits,),
    )


def weights(store: LocalStore, stage: Any) -> bytes:
    return (store.fetch(f"stages/{stage.digest}") / "model.safetensors").read_bytes()


@pytest.mark.chaos
def test_a_killed_stage_resumes_bit_for_bit(rich_stage, run, tmp_path):
    # 20 steps, checkpoints at 3, 6, 9, 10, 12, …; the kill after step 14 loses two steps in the middle of an epoch.
    killed = in_a_process(rich_stage, tmp_path / "killed", tmp_path / "one", kill_at=14)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = LocalStore(tmp_path / "killed")
    assert list(store.names("stages")) == []
    assert [int(n.rsplit("/")[-1]) for n in store.names("progress")] == [10, 12]

    said: list[Progress] = []
    resumed = run(rich_stage, store=store, report=said.append)
    assert (said[0].kind, said[0].step) == ("resumed", 12)

    undisturbed = LocalStore(tmp_path / "undisturbed")
    whole = run(rich_stage, store=undisturbed)
    assert weights(store, rich_stage) == weights(undisturbed, rich_stage)
    assert resumed["metrics"] == whole["metrics"]
    assert list(store.names("progress")) == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_what_dies_in_an_evaluation_repeats_only_that(make_stage, run, tmp_path, monkeypatch, epoch):
    stage = make_stage(epochs=2)
    store, whole = LocalStore(tmp_path / "died"), LocalStore(tmp_path / "whole")
    evaluations = iter(range(1, 3))

    def dies(*args: Any) -> Any:
        if next(evaluations) == epoch:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.training.stage.evaluate", dies)
        with pytest.raises(KeyboardInterrupt):
            run(stage, store=store)
    said: list[Progress] = []
    resumed = run(stage, store=store, report=said.append)
    assert [(p.kind, p.step) for p in said if p.kind != "step"][:2] == [("resumed", 10 * epoch), ("epoch", 10 * epoch)]
    assert resumed["metrics"] == run(stage, store=whole)["metrics"]
    assert weights(store, stage) == weights(whole, stage)
    histories = [
        [json.loads(line)["values"].keys() for line in (s.fetch(f"stages/{stage.digest}") / "history.jsonl").open()]
        for s in (store, whole)
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("optimizer", ["sgd", "nadamw", "lamb", "lion"])
def test_every_optimizer_resumes_bit_for_bit(make_stage, run, tmp_path, optimizer):
    stage = make_stage(batch_size=32, optimizer={"name": optimizer, "betas": [0.9, 0.98]}, checkpoint_every_steps=1)
    stopped, whole = LocalStore(tmp_path / "stopped"), LocalStore(tmp_path / "whole")
    calls = iter([False, False, True])
    with pytest.raises(StageInterrupted, match="after step 3 of 5"):
        run(stage, store=stopped, should_stop=lambda: next(calls))
    run(stage, store=stopped)
    run(stage, store=whole)
    assert weights(stopped, stage) == weights(whole, stage)


def test_a_stage_past_its_deadline_keeps_its_progress(make_stage, run, store):
    stage = make_stage()
    with pytest.raises(StageInterrupted, match=r"after step 1 of 10: its deadline of 1e-09 s has passed"):
        run(stage, WorkerContext(deadline_s=1e-9))
    assert [n.rsplit("/")[-1] for n in store.names("progress")] == ["000000001"]
    assert run(stage)["steps"] == 10


def test_damaged_progress_falls_back_on_the_checkpoint_before(make_stage, run, tmp_path):
    stage = make_stage(checkpoint_every_steps=1)
    store, whole = LocalStore(tmp_path / "damaged"), LocalStore(tmp_path / "whole")
    calls = iter([False] * 4 + [True])
    with pytest.raises(StageInterrupted):
        run(stage, store=store, should_stop=lambda: next(calls))
    newest = tmp_path / "damaged" / "progress" / stage.digest / "000000005" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    said: list[Progress] = []
    run(stage, store=store, report=said.append)
    run(stage, store=whole)
    assert (said[0].kind, said[0].step) == ("resumed", 4)
    assert weights(store, stage) == weights(whole, stage)


def test_progress_of_another_format_is_refused(make_stage, run, store, tmp_path):
    stage = make_stage()
    calls = iter([True])
    with pytest.raises(StageInterrupted):
        run(stage, should_stop=lambda: next(calls))
    name = next(store.names("progress"))
    other = tmp_path / "other"
    other.mkdir()
    for file in ("state.safetensors", "state.json"):
        (other / file).write_bytes((store.fetch(name) / file).read_bytes())
    state = json.loads((other / "state.json").read_text())
    (other / "state.json").write_text(json.dumps(state | {"format_version": 99}))
    store.delete(name)
    store.commit(name, other)
    with pytest.raises(StoreError, match="format 99"):
        run(stage)
