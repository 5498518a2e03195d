"""Leases as files: every version of a record is a file of its own, made by a call that fails if it is there already."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from cluster.lease import Entry, Record
from cluster.marker import parts_of

_PATIENCE = 20
"""How often a folder is read again whose files were replaced in between."""


class LocalRegister:
    """`<folder>/<name>/<version>`: the file with the greatest number counts, and its writer removes those before it.

    `O_EXCL` is the one thing that local disks and shared mounts alike do for one process alone. The store's clock is
    the mount's: the age of a file is counted from the time of a file that is written now.

    Args:
        folder: made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> Entry | None:
        """The record of a name; `None` if there is none."""
        place = self._place(name)
        for _ in range(_PATIENCE):
            versions = _versions(place)
            if not versions:
                return None
            try:
                # Opening makes a shared mount look at the file's time anew.
                with (place / f"{versions[-1]:012d}").open("rb") as file:
                    text, written = file.read(), os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:  # replaced in between
                continue
            return Entry(Record.decode(text), str(versions[-1]), max(0.0, self.now() - written))
        raise OSError(f"the lease `{place}` changes too fast to be read")

    def write(self, name: str, record: Record, version: str | None) -> str | None:
        """Replace the version that was read (`None`: there was none); `None` if somebody else was faster."""
        place, number = self._place(name), int(version or 0) + 1
        path = place / f"{number:012d}"
        for attempt in range(_PATIENCE):
            place.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                break
            except FileExistsError:
                return None
            except FileNotFoundError:  # the folder was removed in between
                if attempt == _PATIENCE - 1:
                    raise
        try:
            os.write(handle, record.encode().encode())
        finally:
            os.close(handle)
        versions = _versions(place)
        if versions[-1:] != [number]:  # others have written several versions, and removed the one that was read
            path.unlink(missing_ok=True)
            return None
        for old in versions[:-1]:
            (place / f"{old:012d}").unlink(missing_ok=True)
        return str(number)

    def remove(self, name: str) -> None:
        """Take a name out. Missing is fine."""
        place = self._place(name)
        for version in _versions(place):
            (place / f"{version:012d}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's, or gone
            place.rmdir()

    def names(self) -> list[str]:
        """All names with a record, released ones included."""
        found = []
        for folder, _, files in os.walk(self._folder):
            if any(file.isdigit() for file in files):
                found.append(Path(folder).relative_to(self._folder).as_posix())
        return sorted(found)

    def _place(self, name: str) -> Path:
        return self._folder.joinpath(*parts_of(name))

    def now(self) -> float:
        """What time the disk, or the mount's server, says it is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".clock-") as file:
            file.write(b"?")
            file.flush()
            return os.fstat(file.fileno()).st_mtime


def _versions(place: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(place) if name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []
