"""Thresholds found at the end of a stage, against the evaluation and the measurement of the same images."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.local import LocalStore
from orchestrator.export import export_network
from orchestrator.measurement.compute import static_macs
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.checkpoint import load_network, read_tensors
from orchestrator.training.data import validation_loader
from orchestrator.training.interface import StageInterrupted
from specs.data import Sample
from strategies import registry
from tests.training.two_workers import run_on_two_workers

DATA = Sample(kind="sample", limit_train=96, limit_val=53)


def exits(**options: Any) -> Any:
    text = json.dumps({"name": "early_exit", "blocks": [0, 1, 2], **options})
    return registry.resolver("early_exit").model_validate_json(text)


def artefact(store: Any, stage: Any) -> Path:
    return store.fetch(f"stages/{stage.digest}")


def macs_by_exit(folder: Path) -> dict[int, float]:
    """Block → MACs of an image that leaves there as a share of the plain network's, counted on a network that is cut
    off behind the exit."""
    counted = {}
    for block in (0, 1, 2, 3):
        network = load_network(folder)
        heads = dict(network.depth)
        network.depth = {}
        whole = static_macs(network, (1, 28, 28))
        assert whole is not None
        extra = sum(48 * 10 for b in heads if b <= block)  # linear heads on the class token
        if block == 3:
            counted[block] = (whole + extra) / whole
            continue
        network.model.blocks = network.model.blocks[: block + 1]
        cut = static_macs(network, (1, 28, 28))
        assert cut is not None
        counted[block] = (cut - 48 * 10 + extra) / whole  # its own head is not run
    return counted


def confidences_and_hits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of every validation image at every exit, one image at a time, with thresholds 0 and 1."""
    network = load_network(folder)
    said: list[list[torch.Tensor]] = []
    labels = []
    heads = list(network.extras["early_exit"].values())
    for head in heads:
        head.found.fill_(1.0)
    for pixels, targets in validation_loader(DATA, 1, torch.device("cpu")):
        answers: list[torch.Tensor] = []
        hooks = [head.register_forward_hook(lambda _, __, y, to=answers: to.append(y[0][0])) for head in heads]
        with torch.no_grad():
            answers.append(network(pixels).logits[0])
        for hook in hooks:
            hook.remove()
        said.append(answers)
        labels.append(int(targets[0]))
    logits = np.array([[z.double().numpy() for z in image] for image in said])  # [n, A, C]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (odds / odds.sum(-1, keepdims=True)).max(-1)
    return confidence[:, :-1], logits.argmax(-1) == np.array(labels)[:, None]


def outcomes(folder: Path, thresholds: Sequence[float]) -> list[tuple[float, float]]:
    """Expected MACs and top-1 in percent at each threshold, image by image."""
    confidence, hits = confidences_and_hits(folder)
    macs, found = list(macs_by_exit(folder).values()), []
    for threshold in thresholds:
        ways = [next((a for a in range(3) if image[a] > threshold), 3) for image in confidence]
        top1 = 100 * float(np.mean([h[w] for h, w in zip(hits, ways, strict=True)]))
        found.append((float(np.mean([macs[w] for w in ways])), top1))
    return found


@pytest.fixture
def small(make_stage: Any) -> Any:
    def make(**options: Any) -> Any:
        return make_stage(**{"data": DATA, "epochs": 3, "batch_size": 16, "optimizer": {"lr": 3e-3}, **options})

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"strategies": (exits(target_macs=0.6),)},
        {"strategies": (exits(target_macs=0.45),), "ema": 0.8, "precision": "bf16"},
        {"strategies": (exits(target_accuracy=0.9),), "ema": 0.8},
    ],
)
def test_the_evaluation_meets_the_target(small: Any, run: Any, store: Any, options: dict[str, Any]) -> None:
    stage = small(**options)
    result = run(stage)
    folder, found = artefact(store, stage), result["targets"]["early_exit"]
    assert found["met"]
    weights = read_tensors(folder / "model.safetensors")
    thresholds = [float(weights[f"extras.early_exit.{b}.found"]) for b in (0, 1, 2)]
    assert thresholds == [found["threshold"]] * 3
    metrics = result["metrics"]
    assert metrics["early_exit.threshold"] == found["threshold"]

    # What the evaluation itself saw leave, at costs counted on networks that end behind the exit.
    macs = macs_by_exit(folder)
    shares = [metrics[f"early_exit.exited_{b}"] for b in (0, 1, 2)]
    expected = sum(s * macs[b] for b, s in enumerate(shares)) + (1 - sum(shares)) * macs[3]
    assert found["expected_macs"] == pytest.approx(expected, rel=1e-6)
    assert 0 < sum(shares) < 1, "some leave early and some do not"
    if found["option"] == "target_macs":
        # One image more would exceed the budget.
        assert found["wanted"] - 1 / 53 < expected <= found["wanted"]
    else:
        assert found["kept_accuracy"] >= 0.9
    if "precision" not in options:
        levels = sorted(confidences_and_hits(folder)[0].flatten().tolist())
        own, whole, *others = outcomes(folder, [found["threshold"], 1.0, 0.0, *levels])
        assert (expected, metrics["val_top1"]) == pytest.approx(own, rel=1e-6)
        assert metrics["val_top1"] == pytest.approx(found["kept_accuracy"] * whole[1])
        if found["option"] == "target_accuracy":
            assert expected == pytest.approx(min(m for m, top1 in [whole, *others] if top1 >= 0.9 * whole[1] - 1e-9))


def test_until_it_is_found_no_image_leaves(small: Any, run: Any) -> None:
    seen: list[Any] = []
    stage = small(strategies=(exits(target_macs=0.5),), epochs=2)
    run(stage, report=seen.append)
    first, last = (p.values for p in seen if p.kind == "epoch")
    assert sum(first[f"early_exit.exited_{b}"] for b in (0, 1, 2)) == 0
    assert "early_exit.threshold" not in first
    assert sum(last[f"early_exit.exited_{b}"] for b in (0, 1, 2)) > 0
    assert 0 < last["early_exit.threshold"] < 1


def test_a_resumed_stage_finds_the_same(small: Any, run: Any, store: Any, tmp_path: Path) -> None:
    stage = small(strategies=(exits(target_macs=0.5),), ema=0.8, checkpoint_every_steps=4)
    whole = run(stage)
    other, asked = LocalStore(tmp_path / "other"), iter([False] * 7 + [True])
    with pytest.raises(StageInterrupted):
        run(stage, store=other, should_stop=lambda: next(asked))
    assert run(stage, store=other)["targets"] == whole["targets"]
    expected, found = (read_tensors(artefact(s, stage) / "model.safetensors") for s in (store, other))
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_target_out_of_reach_says_so(small: Any, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage = small(strategies=(exits(target_macs=0.05),), epochs=1)
    with caplog.at_level(logging.WARNING):
        result = run(stage)
    found = result["targets"]["early_exit"]
    assert not found["met"]
    assert result["metrics"]["early_exit.exited_0"] == 1, "all leave at the first exit"
    assert "no threshold meets `early_exit.target_macs` 0.05" in caplog.text
    assert "Way out: an earlier exit, or a larger target" in caplog.text


def test_the_next_stage_the_teacher_and_the_export_see_it(small: Any, run: Any, store: Any, tmp_path: Path) -> None:
    first = small(strategies=(exits(target_macs=0.5),), epochs=1)
    found = run(first)
    source, threshold = NetworkSource(stage=first.digest), found["metrics"]["early_exit.threshold"]
    again = small(strategies=(exits(target_macs=0.5),), epochs=0, student=source)
    assert run(again)["targets"] == found["targets"]
    # With a threshold of its own the next stage takes over the heads, and goes by that.
    plain = small(strategies=(exits(threshold=threshold),), epochs=0, student=source)
    result = run(plain)
    assert "targets" not in result
    shares = [f"early_exit.exited_{b}" for b in (0, 1, 2)]
    assert [result["metrics"][s] for s in shares] == [found["metrics"][s] for s in shares]
    assert result["metrics"]["val_top1"] == found["metrics"]["val_top1"]

    exported = tmp_path / "exported"
    export_network(artefact(store, first), DATA, "safetensors", exported)
    x = next(iter(validation_loader(DATA, 53, torch.device("cpu"))))[0]
    with torch.no_grad():
        outputs = [load_network(f)(x) for f in (exported, artefact(store, first))]
    assert torch.equal(outputs[0].exit_block, outputs[1].exit_block)
    assert float((outputs[0].exit_block == 0).float().mean()) == pytest.approx(found["metrics"]["early_exit.exited_0"])


def test_heads_from_before_there_were_targets_go_on(small: Any, run: Any, store: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    first = small(strategies=(exits(threshold=0.5),), epochs=1)
    run(first)
    old = tmp_path / "old"
    old.mkdir()
    for file in artefact(store, first).iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    weights = read_tensors(old / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.endswith(".found")}, old / "model.safetensors")
    second = small(strategies=(exits(target_macs=0.5),), epochs=0, student=NetworkSource(checkpoint=str(old)))
    run(second)
    after = read_tensors(artefact(store, second) / "model.safetensors")
    assert all(torch.equal(after[k], v) for k, v in weights.items() if not k.endswith(".found"))


def test_two_workers_find_what_one_finds(small: Any, run: Any, tmp_path: Path) -> None:
    stage = small(strategies=(exits(target_macs=0.5),), epochs=1, micro_batch=8, ema=0.8)
    two = run_on_two_workers(stage, tmp_path)
    alone, together = run(stage), json.loads((artefact(two, stage) / "result.json").read_text())
    one, other = alone["targets"]["early_exit"], together["targets"]["early_exit"]
    # Weights differ in the last digits; who leaves does not.
    assert other["threshold"] == pytest.approx(one["threshold"], rel=1e-4)
    assert (other["expected_macs"], other["kept_accuracy"]) == pytest.approx(
        (one["expected_macs"], one["kept_accuracy"]), rel=1e-9
    )
    for b in (0, 1, 2):
        name = f"early_exit.exited_{b}"
        assert together["metrics"][name] == pytest.approx(alone["metrics"][name])
    # On two workers the evaluation sees the threshold of both.
    macs = macs_by_exit(artefact(two, stage))
    shares = [together["metrics"][f"early_exit.exited_{b}"] for b in (0, 1, 2)]
    expected = sum(s * macs[b] for b, s in enumerate(shares)) + (1 - sum(shares)) * macs[3]
    assert other["expected_macs"] == pytest.approx(expected, rel=1e-6)
