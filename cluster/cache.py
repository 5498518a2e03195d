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
_USED = ".used"
"""Beside each folder, when it was last used: the boot, and seconds on its clock, which no change of the date moves."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


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
        path.parent.mkdir(parents=True, exist_ok=True)
        _mark(path)
        path.mkdir(exist_ok=True)
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
        idle = {path: _idle_s(path) for path in self._root.glob("*/*") if path.is_dir()}
        sizes = {path: _size(path) for path in idle}
        total = sum(sizes.values())
        for path in sorted(idle, key=idle.__getitem__, reverse=True):
            if total + needed <= limit and shutil.disk_usage(self._root).free > needed:
                return
            if idle[path] > _SPARED_S:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]

    def _path(self, key: str) -> Path:
        # The last part of the key stays readable: it stands in messages.
        return self._root / short_name(key) / key.rstrip("/").rsplit("/", 1)[-1]


def _mark(folder: Path) -> None:
    """Note that a folder is used now. For whoever holds the lock of its key."""
    fresh = folder.parent / f"{_USED}-{os.getpid()}"
    fresh.write_text(f"{_boot()} {time.monotonic()}", encoding="ascii")
    fresh.replace(folder.parent / _USED)


def _idle_s(folder: Path) -> float:
    """Seconds since a folder was last used; without end if that was before the machine was last started."""
    try:
        boot, _, at = (folder.parent / _USED).read_text(encoding="ascii").partition(" ")
        idle_s = time.monotonic() - float(at)
    except (OSError, ValueError):  # of a version that made no such notes
        return float("inf")
    return idle_s if boot == _boot() and idle_s >= 0 else float("inf")


def _boot() -> str:
    """What tells this start of the machine from others, where the system says so."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _size(folder: Path) -> int:
    size = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(path, name)).st_size
    return size
