"""A folder on each node for what comes from afar; shared by the node's processes, bounded in size."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER_VARIABLE = "SLIMVIT_CACHE"
LIMIT_VARIABLE = "SLIMVIT_CACHE_GB"
_LIMIT_GB = 100.0
_SPARED_S = 3600.0
"""What was used within this time is not thrown out: somebody may be about to open it."""


def cache_folder() -> Path:
    """Where the cache of this node is: SLIMVIT_CACHE, or the user's cache folder, or, where neither can be written,
    a folder of this user below the system's temporary one."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimvit"
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named).expanduser().absolute() if named else home
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        if named:
            raise
    if named or os.access(folder, os.W_OK):
        return folder
    return Path(tempfile.gettempdir()) / f"slimvit-cache-{os.getuid()}"


def short_name(text: str) -> str:
    """A file name for a text of any length."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within this block, no other process of the node is in a block of the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Cache:
    """Folders below a root, the least recently used of which go when room is needed.

    Args:
        root: of these folders; a folder is one directory level below it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, key: str) -> Path:
        """The folder of a key, made if it is not there, and marked as used."""
        path = self._path(key)
        path.mkdir(parents=True, exist_ok=True)
        os.utime(path)
        return path

    def lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        """One process at a time."""
        return alone(self._root / ".locks" / short_name(key))

    def drop(self, key: str) -> None:
        """Remove the folder of a key. Missing is fine."""
        shutil.rmtree(self._path(key), ignore_errors=True)

    def make_room(self, needed: int) -> None:
        """Throw out what was not used for longest until `needed` bytes fit the limit and the disk.

        Where they still do not fit, the write that follows says so.
        """
        limit = int(float(os.environ.get(LIMIT_VARIABLE) or _LIMIT_GB) * 1e9)
        self._root.mkdir(parents=True, exist_ok=True)
        folders = sorted((used, path) for path in self._root.glob("*/*") if (used := _used(path)) is not None)
        sizes = {path: _size(path) for _, path in folders}
        total = sum(sizes.values())
        for used, path in folders:
            if total + needed <= limit and shutil.disk_usage(self._root).free > needed:
                return
            if time.time() - used > _SPARED_S:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]

    def _path(self, key: str) -> Path:
        # The last part of the key stays readable: it stands in messages.
        return self._root / short_name(key) / key.rstrip("/").rsplit("/", 1)[-1]


def _used(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _size(folder: Path) -> int:
    size = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(path, name)).st_size
    return size
