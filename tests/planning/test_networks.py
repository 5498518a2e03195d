"""Checkpoints as students and teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.planning.networks import from_checkpoint, student_model
from specs.data import Sample
from specs.model import ModelSpec
from strategies.shapes import BlockShape, Shapes

DATA = Sample(kind="sample")
MODEL = student_model(ModelSpec(model="vit_tiny_patch16_224", args={"patch_size": 4, "depth": 2}), DATA, 10)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder in the form of a slimvit checkpoint; planning never reads the tensors."""
    described = {
        "format_version": 1,
        "model": MODEL.model_dump(mode="json"),
        "shapes": {"1": [2, 100]},
        "strategies": [],
        "num_classes": 10,
    }
    (tmp_path / "model.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_folder_brings_its_network_and_pruned_shapes(checkpoint):
    network = from_checkpoint(str(checkpoint), None, DATA)
    assert network.model == MODEL
    assert network.facts.depth == 2
    assert network.shapes == Shapes(blocks={1: BlockShape(2, 100)})
    assert network.source.checkpoint == str(checkpoint)
    assert network.source.model is None


def test_identity_is_the_content_not_the_place(checkpoint, tmp_path_factory):
    before = from_checkpoint(str(checkpoint), None, DATA).identity
    copy = tmp_path_factory.mktemp("copy")
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert from_checkpoint(str(copy), None, DATA).identity == before
    (copy / "model.safetensors").write_bytes(b"other weights")
    assert from_checkpoint(str(copy), None, DATA).identity != before


def test_a_file_of_timm_weights_needs_its_model(checkpoint):
    file = str(checkpoint / "model.safetensors")
    network = from_checkpoint(file, MODEL.model_copy(update={"pretrained": True}), DATA)
    assert network.source.model == MODEL
    with pytest.raises(ValueError, match=r"Way out: name its network"):
        from_checkpoint(file, None, DATA)


def test_what_is_no_checkpoint(checkpoint):
    with pytest.raises(ValueError, match=r"no checkpoint .*Way out"):
        from_checkpoint(str(checkpoint / "nowhere"), None, DATA)
    (checkpoint / "model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.json` cannot be read"):
        from_checkpoint(str(checkpoint), None, DATA)
    (checkpoint / "model.json").unlink()
    with pytest.raises(ValueError, match=r"lacks `model\.json`"):
        from_checkpoint(str(checkpoint), None, DATA)
