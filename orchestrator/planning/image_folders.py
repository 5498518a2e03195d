"""Which files of a folder are images. Planning describes and training reads what this one walk finds.

A class is a sub-folder of a split; its images may lie in sub-folders of their own. Links to files and folders count as
what they lead to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CLASSES_AT_ONCE = 16
"""Class folders that are read side by side: on a disk across a network, most of the time is waiting."""


class ImageFile(NamedTuple):
    """One image of a class."""

    path: str
    """Below the class folder, `/` between the parts."""
    num_bytes: int


def names_of_classes(split: Path) -> list[str]:
    """Names of the class folders, sorted; hidden ones do not count."""
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))


def classes_in(split: Path) -> dict[str, list[ImageFile]]:
    """Class → its images. Classes are sorted by name, images by the parts of their paths.

    Args:
        split: an existing folder.

    Raises:
        DataError: if a link leads to a folder that it lies in.
    """
    names = names_of_classes(split)
    with ThreadPoolExecutor(CLASSES_AT_ONCE) as pool:
        return dict(zip(names, pool.map(_images_in, (str(split / name) for name in names)), strict=True))


def _images_in(class_folder: str) -> list[ImageFile]:
    return sorted(_walk(class_folder, "", ()), key=lambda image: image.path.split("/"))


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[ImageFile]:
    """All images below a folder.

    Args:
        prefix: its path below the class folder, with a `/` at the end.
        above: device and number of the folders that it lies in.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        raise DataError(f"{folder} is a link to a folder that it lies in, so its images have no end. Remove the link.")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                yield ImageFile(prefix + entry.name, entry.stat().st_size)
