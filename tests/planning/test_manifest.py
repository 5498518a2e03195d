"""What image folders hold, and what is wrong with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import DataError
from orchestrator.planning import manifest
from orchestrator.planning.manifest import TORCHVISION, manifest_of
from specs.data import ImageFolder, Sample, Torchvision


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three training images and one validation image each; contents do not matter to a manifest."""
    for split, count in (("train", 3), ("val", 1)):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(b"x" * (10 + i))
    (tmp_path / "images" / "train" / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    return tmp_path / "images"


def folder(root: Path) -> ImageFolder:
    return ImageFolder(kind="image_folder", root=str(root))


def test_classes_and_counts(root):
    found = manifest_of(folder(root))
    assert (found.num_classes, found.num_train, found.num_val) == (2, 6, 2)
    assert found.class_names == ("cat", "dog")


def test_moving_the_folder_changes_nothing(root, tmp_path):
    before = manifest_of(folder(root)).digest
    shutil.copytree(root, tmp_path / "elsewhere")
    assert manifest_of(folder(tmp_path / "elsewhere")).digest == before


@pytest.mark.parametrize("change", ["add", "remove", "rename", "resize", "move"])
def test_every_change_of_the_images_changes_the_digest(root, change):
    before = manifest_of(folder(root)).digest
    image = root / "train" / "cat" / "1.png"
    if change == "add":
        (image.parent / "9.png").write_bytes(b"x")
    elif change == "remove":
        image.unlink()
    elif change == "rename":
        image.rename(image.with_name("7.png"))
    elif change == "resize":
        image.write_bytes(b"x")
    else:
        image.rename(root / "train" / "dog" / "8.png")
    assert manifest_of(folder(root)).digest != before


def test_other_files_do_not_count(root):
    before = manifest_of(folder(root))
    (root / "train" / "cat" / "more.txt").write_text("still no image", encoding="utf-8")
    assert manifest_of(folder(root)) == before


def test_images_in_sub_folders_count(root):
    (root / "train" / "cat" / "deep").mkdir()
    (root / "train" / "cat" / "deep" / "0.JPEG").write_bytes(b"x")
    assert manifest_of(folder(root)).num_train == 7


def test_missing_folders_classes_and_images(root):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        manifest_of(folder(root / "nowhere"))
    shutil.rmtree(root / "val" / "dog")
    with pytest.raises(DataError, match=r"val lacks 1 of the classes in .*: `dog`.*same class folders"):
        manifest_of(folder(root))
    (root / "val" / "dog").mkdir()
    with pytest.raises(DataError, match=r"no images in .*val/dog"):
        manifest_of(folder(root))
    shutil.rmtree(root / "train" / "dog")
    with pytest.raises(DataError, match="at least two"):
        manifest_of(folder(root))


def test_large_folders_are_read_once(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "CACHE_FROM_IMAGES", 1)
    first = manifest_of(folder(root))
    scandir = os.scandir
    scanned: list[str] = []
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    assert manifest_of(folder(root)) == first
    assert scanned == []
    (root / "train" / "cat" / "new.png").write_bytes(b"x")
    assert manifest_of(folder(root)).num_train == first.num_train + 1
    assert scanned != []


def test_samples_and_torchvision():
    sample = manifest_of(Sample(kind="sample"))
    assert (sample.num_classes, sample.num_train, sample.num_val) == (10, 4000, 1000)
    cifar = manifest_of(Torchvision(kind="torchvision", name="CIFAR100"))
    assert (cifar.num_classes, cifar.num_train, cifar.num_val) == (100, 50_000, 10_000)
    digests = {manifest_of(Torchvision(kind="torchvision", name=name)).digest for name in TORCHVISION}  # type: ignore[arg-type]
    assert len(digests) == len(TORCHVISION)
