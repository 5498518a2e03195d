"""The commit marker: the digest and size of every file of an artefact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_BYTES = 1 << 20
_THREADS = 4
"""Files are hashed side by side; hashlib lets other threads run meanwhile."""
Contents = dict[str, dict[str, Any]]
"""Relative path → `sha256` and `size` of the file."""


@dataclass(frozen=True)
class Marker:
    """What a commit names."""

    files: Contents
    folder: str = ""
    """Where the files lie, below the artefact's own place; empty = there."""

    def encode(self) -> str:
        """As JSON."""
        content: dict[str, Any] = {"format": 1, "files": self.files}
        if self.folder:
            content["folder"] = self.folder
        return json.dumps(content, indent=1, sort_keys=True)

    @property
    def content(self) -> str:
        """SHA-256 of what the files hold, wherever they lie."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    @classmethod
    def decode(cls, text: str | bytes) -> Marker:
        """From JSON.

        Raises:
            ValueError: if it is none that `encode` wrote.
        """
        try:
            found = json.loads(text)
            files = {
                file: {"sha256": str(known["sha256"]), "size": int(known["size"])}
                for file, known in found["files"].items()
            }
            return cls(files, str(found.get("folder", "")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(repr(error)) from error


def files_below(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents_of(folder: Path, files: Iterable[str] | None = None) -> Contents:
    """Digest and size of every file below a folder, or of some, by relative path."""
    names = files_below(folder) if files is None else list(files)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(size_and_sha256, (str(folder / name) for name in names))
        return {name: {"size": size, "sha256": digest} for name, (size, digest) in zip(names, found, strict=True)}


def size_and_sha256(path: str) -> tuple[int, str]:
    """Of one file.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.hexdigest()


def difference(path: str, expected: dict[str, Any]) -> str | None:
    """How a file differs from what the marker says; `None` if it does not."""
    try:
        size, digest = size_and_sha256(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return "is missing"
    if size != expected["size"]:
        return f"has {size} bytes instead of {expected['size']}"
    if digest != expected["sha256"]:
        return f"has SHA-256 {digest[:12]}… instead of {expected['sha256'][:12]}…"
    return None


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of an artefact's name.

    Raises:
        ValueError: if it is none; nothing outside the store can be named.
    """
    parts = tuple(part for part in name.split("/") if part)
    if not parts or any(part.startswith(".") for part in parts):
        raise ValueError(f"`{name}` is no artefact name; names look like `stages/<digest>`")
    return parts
