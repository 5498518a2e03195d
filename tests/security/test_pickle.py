"""Files that run code when they are unpickled, in every place from which weights or progress are read: never opened."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.local import LocalStore
from orchestrator.errors import StoreError
from orchestrator.planning.networks import from_checkpoint
from orchestrator.reporting.stored import read_history, read_outcomes, read_points, read_result, read_rows
from orchestrator.training.checkpoint import load_network, read_tensors
from orchestrator.training.progress import ProgressStore
from specs.data import Sample
from specs.model import ModelSpec

CANARY: list[str] = []


def sing(where: str) -> None:
    CANARY.append(where)


class Malicious:
    """Runs `sing` when it is unpickled."""

    def __reduce__(self) -> Any:
        return sing, ("unpickled",)


@pytest.fixture(params=["pickle", "torch"])
def malice(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    sys.modules.setdefault(sing.__module__, sys.modules[__name__])
    if request.param == "pickle":
        content = pickle.dumps(Malicious())
    else:
        torch.save({"model": Malicious()}, tmp_path / "malice.pt")
        content = (tmp_path / "malice.pt").read_bytes()
    return content


@pytest.fixture(autouse=True)
def quiet() -> Any:
    CANARY.clear()
    yield
    assert CANARY == [], "it was unpickled"


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious()))
    assert CANARY.pop() == "unpickled"


def test_weights(malice: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(malice)
    (folder / "model.json").write_text(
        json.dumps(
            {
                "format_version": 1,
                "model": {"model": "vit_tiny_patch16_224"},
                "shapes": {},
                "strategies": [],
                "num_classes": 10,
                "teacher": None,
            }
        )
    )
    with pytest.raises(StoreError):
        read_tensors(folder / "model.safetensors")
    with pytest.raises(StoreError):
        load_network(folder)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "weights.pkl", "weights.safetensors"])
def test_a_spec_that_names_one(malice: bytes, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(malice)

    def follow() -> None:
        found = from_checkpoint(str(tmp_path / name), ModelSpec(model="vit_tiny_patch16_224"), Sample(kind="sample"))
        read_tensors(Path(str(found.source.checkpoint)))

    with pytest.raises((ValueError, StoreError)):
        follow()


def test_a_store_that_holds_nothing_else(malice: bytes, tmp_path: Path) -> None:
    """With digests that fit: whoever can write the store can write the marker too."""
    source = tmp_path / "source"
    source.mkdir()
    names = ("model.safetensors", "model.json", "state.safetensors", "state.json", "history.jsonl", "result.json")
    for name in (*names, "rows.json", "points.json", "evaluation.json", "optimizer.pt", "data.pkl"):
        (source / name).write_bytes(malice)
    store = LocalStore(tmp_path / "store")
    store.commit("progress/abc/000000001", source)
    progress = ProgressStore(store, "abc", tmp_path / "scratch")
    assert progress.latest_sound() == 1
    with pytest.raises(StoreError):
        progress.shapes(1)
    folder = store.fetch("progress/abc/000000001")
    for read in (load_network, read_rows, read_points, read_result, read_history, read_outcomes):
        with pytest.raises(StoreError):
            read(folder)
