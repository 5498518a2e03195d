"""Every format against the network it came from, on real images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from strategies.facts import Facts, ModelFacts
from strategies.shapes import WHOLE

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


def artefact(folder: Path, *options: dict, teachers: Sequence[ModelFacts] = ()) -> Path:
    """A network as a training stage leaves it, with what only training needs still in it."""
    torch.manual_seed(1)
    strategies: list[Strategy] = [strategy_of(o) for o in options]
    facts = facts_of(MODEL)
    taught_by = list(teachers) or [facts]
    student = compose(build_model(MODEL), strategies, Facts.of(facts, WHOLE, taught_by))
    save_network(folder, student, MODEL, [s.config for s in strategies], 10, taught_by)
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


@pytest.mark.parametrize("what", [["heads", "mlp"], ["head_width", "mlp", "embed", "depth"]])
@pytest.mark.parametrize("output_format", ["safetensors", "pt2"])
def test_a_pruned_network_leaves_at_its_own_shapes(tmp_path: Path, output_format: str, what: list[str]) -> None:
    folder = artefact(tmp_path / "stage", {**PRUNING, "ratio": 0.5, "what": what})
    trained = load_network(folder)
    sizes = {name: tuple(tensor.shape) for name, tensor in trained.model.state_dict().items()}
    whole = {name: tuple(tensor.shape) for name, tensor in build_model(MODEL).state_dict().items()}
    assert sizes != whole
    exported = export_network(folder, DATA, output_format, tmp_path / "out")
    assert exported.check.top1_agreement == 1.0
    if output_format == "pt2":
        program = torch.export.load(exported.file)
        found = sorted(tuple(p.shape) for p in program.state_dict.values())
        assert found == sorted(tuple(p.shape) for p in load_deployed(folder).network.state_dict().values())
        assert sum(p.numel() for p in program.state_dict.values()) < sum(map(math.prod, whole.values()))
    else:
        again = load_network(exported.folder)
        assert again.shapes == trained.shapes
        assert {name: tuple(t.shape) for name, t in again.model.state_dict().items()} == sizes
        assert json.loads((exported.folder / "model.json").read_text())["shapes"] == trained.shapes.to_json()


@pytest.mark.parametrize("output_format", ["safetensors", "torchscript", "onnx", "pt2"])
def test_peers_stay_behind_and_tokens_of_several_teachers_go_along(tmp_path: Path, output_format: str) -> None:
    resnet = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 10}))
    options = ({"name": "mutual", "peers": 2}, {"name": "cross_inductive_bias"})
    folder = artefact(tmp_path / "stage", *options, teachers=[resnet, facts_of(MODEL), resnet])
    assert any(key.startswith("extras.mutual.") for key in load_network(folder).network_state())
    exported = export_network(folder, DATA, output_format, tmp_path / "out")
    assert exported.check.top1_agreement == 1.0
    assert exported.check.max_logit_difference < 1e-4
    if output_format == "safetensors":
        network = load_network(exported.folder)
        assert not any(key.startswith("extras.mutual.") for key in network.network_state())
        assert len(network.extras["cross_inductive_bias"].tokens) == 3


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
