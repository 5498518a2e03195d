"""The commit marker: the digest and size of every file of an artefact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART_BYTES = 16 << 20
"""Digests of larger files are made of their parts' (ADR 0020). Markers depend on it: it never changes."""
_READ_BYTES = 1 << 18
"""Stays in a core's cache between reading and hashing."""
_THREADS = 4
"""Parts are hashed side by side; hashlib lets other threads run meanwhile."""
Contents = dict[str, dict[str, Any]]
"""Relative path → `sha256` (see `_text`) and `size` of the file."""


@dataclass(frozen=True)
class Marker:
    """What a commit names."""

    files: Contents
    folder: str = ""
    """Where the files lie, below the artefact's own place; empty = there."""

    def encode(self) -> str:
        """As JSON."""
        content: dict[str, Any] = {"format": 2, "files": self.files}
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


def _text(parts: list[bytes]) -> str:
    """Of a file of one part its SHA-256; of a longer one the SHA-256 over those of its parts, `-` and their number."""
    return parts[0].hex() if len(parts) == 1 else f"{hashlib.sha256(b''.join(parts)).hexdigest()}-{len(parts)}"


def contents_of(folder: Path, files: Iterable[str] | None = None) -> Contents:
    """Digest and size of every file below a folder, or of some, by relative path."""
    names = files_below(folder) if files is None else list(files)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = {name: [threads.submit(_part, *part) for part in _parts(str(folder / name))] for name in names}
        return {name: _joined([part.result() for part in parts]) for name, parts in found.items()}


def size_and_sha256(path: str) -> tuple[int, str]:
    """Of one file.

    Raises:
        OSError: if it cannot be read.
    """
    parts = _parts(path)
    if len(parts) == 1:  # threads cost as much as reading a small file
        found = _joined([_part(path, 0)])
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            found = _joined([part.result() for part in [threads.submit(_part, *part) for part in parts]])
    return found["size"], found["sha256"]


def _parts(path: str) -> list[tuple[str, int]]:
    """Where the parts of a file begin; an empty one has one, too."""
    return [(path, start) for start in range(0, max(os.stat(path).st_size, 1), PART_BYTES)]


def _joined(parts: list[tuple[int, bytes]]) -> dict[str, Any]:
    return {"size": sum(size for size, _ in parts), "sha256": _text([digest for _, digest in parts])}


def _part(path: str, start: int) -> tuple[int, bytes]:
    """Size and digest of one part of a file."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(buffer[: PART_BYTES - size]):
            digest.update(buffer[:count])
            size += count
    return size, digest.digest()


def _whole_file(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(path: str, expected: dict[str, Any]) -> str | None:
    """How a file differs from what the marker says; `None` if it does not."""
    try:
        size = os.stat(path).st_size
        if size == expected["size"]:
            in_parts = "-" in expected["sha256"]  # markers of format 1 have the SHA-256 of a file as one
            size, digest = size_and_sha256(path) if in_parts else (size, _whole_file(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return "is missing"
    if size != expected["size"]:
        return f"has {size} bytes instead of {expected['size']}"
    if digest != expected["sha256"]:
        return f"has SHA-256 {digest[:12]}… instead of {expected['sha256'][:12]}…"
    return None


def same(known: Contents, contents: Contents, folder: Path) -> bool:
    """Whether a marker's files are those of a folder.

    Args:
        contents: of the folder; an older marker may hold digests of another form, and then its files are read again.
    """
    return known == contents or (
        known.keys() == contents.keys() and not any(difference(str(folder / file), known[file]) for file in known)
    )


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of an artefact's name.

    Raises:
        ValueError: if it is none; nothing outside the store can be named.
    """
    parts = tuple(part for part in name.split("/") if part)
    if not parts or any(part.startswith(".") for part in parts):
        raise ValueError(f"`{name}` is no artefact name; names look like `stages/<digest>`")
    return parts
