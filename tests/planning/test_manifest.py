"""What image folders hold, and what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import DataError
from orchestrator.planning.manifest import TORCHVISION, Manifests, manifest_of
from orchestrator.training.sources import open_images
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


def test_what_is_overwritten_in_place_is_noticed(root):
    """Overwriting a file leaves its folder as it was, so nothing may be concluded from folders alone."""
    image = root / "train" / "cat" / "1.png"
    before, folder_before = manifest_of(folder(root)).digest, image.parent.stat().st_mtime_ns
    image.write_bytes(b"other pixels")
    assert image.parent.stat().st_mtime_ns == folder_before
    assert manifest_of(folder(root)).digest != before


def test_one_command_reads_a_folder_once(root, monkeypatch):
    known = Manifests()
    first = known.of(folder(root))
    monkeypatch.setattr(os, "scandir", None)  # whoever read the folder again would fail
    assert known.of(folder(root).model_copy(update={"limit_val": 1})) is first
    assert known.of(Sample(kind="sample")).num_val == 1000


def test_the_digest_is_what_it_always_was(root):
    """By hand: split/class/path, a zero byte, the size; classes and paths in the order of their text."""
    nested = root / "train" / "cat" / "a-b"
    nested.mkdir()
    (nested / "5.png").write_bytes(b"x")
    (root / "train" / "cat" / "a").mkdir()
    (root / "train" / "cat" / "a" / "6.png").write_bytes(b"xy")
    lines = ["train/cat/0.png\0" + "10", "train/cat/1.png\0" + "11", "train/cat/2.png\0" + "12"]
    lines += ["train/cat/a-b/5.png\0" + "1", "train/cat/a/6.png\0" + "2"]
    lines += ["train/dog/0.png\0" + "10", "train/dog/1.png\0" + "11", "train/dog/2.png\0" + "12"]
    lines += ["val/cat/0.png\0" + "10", "val/dog/0.png\0" + "10"]
    expected = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert manifest_of(folder(root)).digest == expected


def test_planning_and_training_see_the_same_images(root, tmp_path):
    """Links to a folder and to a file, a link that leads nowhere, deep folders, odd names, other files."""
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    for name in ("8.png", "9.JPG", "readme.md"):
        (elsewhere / name).write_bytes(b"x")
    cat = root / "train" / "cat"
    (cat / "linked").symlink_to(elsewhere.parent)
    (cat / "7.png").symlink_to(elsewhere / "8.png")
    (cat / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (cat / "folder.png").mkdir()
    (root / "train" / "owl").symlink_to(elsewhere)
    (root / "val" / "owl").symlink_to(elsewhere)
    described = manifest_of(folder(root))
    train, val = (open_images(folder(root), split) for split in ("train", "val"))
    assert (described.num_train, described.num_val) == (len(train), len(val)) == (6 + 3 + 2, 2 + 2)
    assert train.classes == described.class_names == ("cat", "dog", "owl")
    shown = [Path(train.where(i)).relative_to(cat).as_posix() for i, label in enumerate(train.labels) if label == 0]
    assert shown == ["0.png", "1.png", "2.png", "7.png", "linked/deep/8.png", "linked/deep/9.JPG"]


@pytest.mark.parametrize("reads", [manifest_of, lambda data: open_images(data, "train")])
def test_a_link_to_a_folder_that_it_lies_in_is_refused(root, reads):
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    with pytest.raises(DataError, match=r"again/cat.* is a link to a folder that it lies in.*Remove the link"):
        reads(folder(root))


def test_samples_and_torchvision():
    sample = manifest_of(Sample(kind="sample"))
    assert (sample.num_classes, sample.num_train, sample.num_val) == (10, 4000, 1000)
    cifar = manifest_of(Torchvision(kind="torchvision", name="CIFAR100"))
    assert (cifar.num_classes, cifar.num_train, cifar.num_val) == (100, 50_000, 10_000)
    digests = {manifest_of(Torchvision(kind="torchvision", name=name)).digest for name in TORCHVISION}  # type: ignore[arg-type]
    assert len(digests) == len(TORCHVISION)
