"""Every format against the network it came from, on real images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orchestrator.errors import UsageError
from orchestrator.export import export_network
from orchestrator.measurement.images import validation_images
from orchestrator.measurement.network import Recipe, load_deployed, strategy_of
from orchestrator.training.checkpoint import load_network, save_network
from specs.data import Sample
from specs.model import ModelSpec
from strategies.api import Strategy
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts

DATA = Sample(kind="sample", limit_val=200)
MODEL = ModelSpec(
    model="vit_tiny_patch16_224",
    args={
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "embed_dim": 48,
        "depth": 4,
        "num_heads": 3,
        "num_classes": 10,
    },
)
MERGING = {"name": "token_merging", "r": 2}
PRUNING = {"name": "structured_pruning", "ratio": 0.4}
EXITS = {"name": "early_exit", "blocks": [1], "threshold": 0.105}
FEATURE = {"name": "feature"}


def artefact(folder: Path, *options: dict) -> Path:
    """A network as a training stage leaves it, with what only training needs still in it."""
    torch.manual_seed(1)
    strategies: list[Strategy] = [strategy_of(o) for o in options]
    facts = facts_of(MODEL)
    student = compose(build_model(MODEL), strategies, Facts(facts, teacher=facts))
    save_network(folder, student, MODEL, [s.config for s in strategies], 10, [facts])
    return folder


@pytest.mark.parametrize("options", [(MERGING, PRUNING), (FEATURE,)], ids=["merged and pruned", "feature"])
@pytest.mark.parametrize("output_format", ["safetensors", "torchscript", "onnx", "pt2"])
def test_answers_like_the_original(tmp_path: Path, output_format: str, options: tuple[dict, ...]) -> None:
    exported = export_network(artefact(tmp_path / "stage", *options), DATA, output_format, tmp_path / "out")
    assert exported.file.is_file()
    assert exported.check.num_images == 64
    assert exported.check.top1_agreement == 1.0
    assert exported.check.max_logit_difference < 1e-4 < exported.check.largest_logit
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["classes"] == [str(d) for d in range(10)]
    assert about["input"]["shape"] == ["batch", 1, 28, 28]
    assert {p.name for p in tmp_path.iterdir()} == {"stage", "out"}, "no scratch is left"


def test_training_only_modules_stay_behind(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "stage", FEATURE)
    assert any(k.startswith("extras.feature.") for k in load_network(folder).network_state())
    export_network(folder, DATA, "safetensors", tmp_path / "out")
    assert not any(k.startswith("extras.") for k in load_network(tmp_path / "out").network_state())


def test_exits_fit_safetensors_alone(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "stage", EXITS)
    for output_format in ("torchscript", "onnx", "pt2"):
        with pytest.raises(UsageError, match=r"depends on the image.*safetensors"):
            export_network(folder, DATA, output_format, tmp_path / "out")
    export_network(folder, DATA, "safetensors", tmp_path / "out")
    images = validation_images(DATA, 32)
    with torch.no_grad():
        before, after = load_deployed(folder).network(images), load_network(tmp_path / "out")(images)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.exit_block, after.exit_block)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        export_network(artefact(tmp_path / "stage"), DATA, "pt2", tmp_path)


def test_the_traced_file_takes_the_strategies_along(tmp_path: Path) -> None:
    """A plain network of the same weights answers differently, so the check is not vacuous."""
    folder = artefact(tmp_path / "stage", MERGING)
    exported = export_network(folder, DATA, "torchscript", tmp_path / "out")
    plain = Recipe(model=MODEL).build().network
    plain.load_network_state(load_deployed(folder).network.network_state())
    images = validation_images(DATA, 64)
    with torch.no_grad():
        difference = (torch.jit.load(exported.file)(images) - plain(images).logits).abs().max()
    assert difference > 10 * exported.check.max_logit_difference
