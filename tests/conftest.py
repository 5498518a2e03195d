"""Fixtures for all tests."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

# Toy networks gain nothing from threads, and lose much where the cores are busy. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cluster.token import show_token
from specs.model import ModelSpec

# Ray reads the mode once for the whole process, when it is first imported; the clusters of the tests want a token.
show_token(starting=True)

CIFAR10_VARIABLE = "SLIMVIT_TEST_CIFAR10"
TRAIN_PER_CLASS, VAL_PER_CLASS = 40, 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the machine to itself."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a subset of CIFAR-10 as JPEG files: `train/<class>/*.jpg` and `val/<class>/*.jpg`.

    The archive (`train/<class>/NNNN.jpg`, `test/<class>/NNNN.jpg`) is named by SLIMVIT_TEST_CIFAR10.
    """
    archive = os.environ.get(CIFAR10_VARIABLE)
    if not archive or not Path(archive).is_file():
        reason = f"{CIFAR10_VARIABLE} names no archive of CIFAR-10 as JPEG files"
        if os.environ.get("SLIMVIT_REQUIRE_DATA"):
            pytest.fail(f"{reason}, and SLIMVIT_REQUIRE_DATA is set")
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("cifar10")
    taken: Counter[Path] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[-3:]
            if not member.isfile() or len(parts) < 3 or parts[0] not in ("train", "test"):
                continue
            split, wanted = ("train", TRAIN_PER_CLASS) if parts[0] == "train" else ("val", VAL_PER_CLASS)
            folder = root / split / parts[1]
            source = tar.extractfile(member) if taken[folder] < wanted else None
            if source is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / parts[2]).write_bytes(source.read())
                taken[folder] += 1
    return root


@pytest.fixture
def toy_vit() -> ModelSpec:
    """A ViT that trains a step in milliseconds: 64 px, 64 patches, width 48, depth 4, 3 heads, 10 classes."""
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
    return ModelSpec(model="vit_tiny_patch16_224", args=args)
