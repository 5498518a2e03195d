"""Networks as files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.errors import StoreError
from orchestrator.training.checkpoint import load_network, read_tensors, save_network
from strategies import registry
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts


def saved(folder, model, *configs):
    configs = [registry.resolver(c["name"]).model_validate(c) for c in configs]
    student = compose(build_model(model), [registry.build(c) for c in configs], Facts(facts_of(model)))
    save_network(folder, student, model, configs, 10)
    return student.eval()


@pytest.mark.parametrize(
    "configs",
    [
        [],
        [{"name": "token_merging", "r": 2}],
        [{"name": "structured_pruning", "ratio": 0.5}, {"name": "early_exit", "blocks": (1,), "threshold": 0.2}],
    ],
    ids=["plain", "merging", "pruned with exits"],
)
def test_a_network_comes_back_as_it_was(tmp_path, tiny, configs):
    student = saved(tmp_path, tiny, *configs)
    loaded = load_network(tmp_path)
    images = torch.randn(5, 1, 28, 28)
    assert torch.equal(loaded(images).logits, student(images).logits)
    assert loaded.shapes == student.shapes
    assert not loaded.training


def test_what_is_damaged_is_refused_by_name(tmp_path, tiny):
    saved(tmp_path, tiny)
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, words = weights.read_bytes(), description.read_text()

    weights.write_bytes(whole[:1000])
    with pytest.raises(StoreError, match=r"model\.safetensors is no readable safetensors file"):
        load_network(tmp_path)

    tensors = dict(list(read_tensors_of(whole, tmp_path).items())[1:])
    save_file(tensors, weights)
    with pytest.raises(StoreError, match=r"(?s)does not hold the tensors of this network.*Missing key"):
        load_network(tmp_path)

    weights.write_bytes(whole)
    description.write_text(words.replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(StoreError, match="format 7, and this version of slimvit reads format 1"):
        load_network(tmp_path)

    description.write_text(words[:50])
    with pytest.raises(StoreError, match="no readable description"):
        load_network(tmp_path)

    description.write_text(json.dumps({k: v for k, v in json.loads(words).items() if k != "shapes"}))
    with pytest.raises(StoreError, match="does not describe a network"):
        load_network(tmp_path)


def read_tensors_of(data: bytes, folder):
    copy = folder / "copy.safetensors"
    copy.write_bytes(data)
    return read_tensors(copy)
