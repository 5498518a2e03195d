"""The artefact store on a folder of the local disk or of a shared mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.local_register import LocalRegister
from cluster.marker import Contents, Marker, contents_of, difference, parts_of, same
from cluster.storage import ABANDONED_S, MARKER, Inventory, Kept

_TEMPORARY = ".incoming-"
"""Prefix of folders that are still being written; they are no artefacts, whatever they hold."""
_LEASES = ".leases"


class LocalStore:
    """Folders below a root; see `cluster.storage.ArtifactStore` for what the methods promise.

    Files arrive in a temporary sibling, are flushed to disk, the marker follows last, and the sibling is renamed to its
    place. So a reader sees an artefact whole or not at all, whenever the writer is killed. Objects hold nothing but the
    root: they can be sent to other processes and nodes that mount it.

    Args:
        root: folder of the store; made on the first commit. `~` is expanded and the path made absolute, because
            workers run elsewhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self._root = str(self.root)

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def location(self) -> str:
        """The root."""
        return self._root

    def place(self, name: str) -> str:
        """The artefact's folder."""
        return os.path.join(self._root, *parts_of(name))

    def check(self) -> None:
        """Check that no file is in the root's place. Read as a store it would look empty, and finished work as
        missing.

        Raises:
            NotADirectoryError: if one is.
        """
        for place in (self.root, *self.root.parents):
            if place.is_dir():
                return
            if place.exists():
                raise NotADirectoryError(
                    f"the artefact store `{self.root}` cannot be read: `{place}` is a file. Set `storage.root` (or "
                    "`--store`) to the folder of the store"
                )

    def prepare(self) -> None:
        """Make the root and check that it can be written.

        Raises:
            OSError: with what is wrong and the way out.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f"{_TEMPORARY}{uuid.uuid4().hex}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise OSError(
                f"the artefact store `{self.root}` cannot be written: {error.strerror or error}. "
                "Set `storage.root` to a folder that you may write and that every worker sees"
            ) from error

    def scratch(self) -> str:
        """A new folder that every node which mounts the store sees, and that is no artefact."""
        folder = self.root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return str(folder)

    def discard(self, leftover: str) -> None:
        """Remove a scratch folder, or one of the inventory's leftovers. Missing is fine."""
        path = Path(os.path.normpath(self.root / leftover))
        assert path != self.root, "the store is no leftover"
        assert path.is_relative_to(self.root), "a leftover lies in the store"
        shutil.rmtree(path, ignore_errors=True)

    def commit(self, name: str, folder: Path) -> None:
        """Move the files of `folder` into the store and write the marker last; `folder` is gone afterwards.

        Raises:
            FileExistsError: if the artefact exists with other content.
            OSError: if the store cannot be written.
        """
        target = self._folder(name)
        if self.committed(name):
            self._same_or_refuse(name, contents_of(folder), folder)
            return
        if not self.root.is_dir():
            self.prepare()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent != self.root:  # there `scratch` folders lie, which live as long as a run
            self._sweep(target.parent)
        incoming = target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}"
        _move(folder, incoming)
        try:
            contents = _hash_and_flush(incoming)
            _write_marker(incoming, contents)
            if not self._claim(incoming, name):
                self._same_or_refuse(name, contents, incoming)
                return
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        _sync_folder(target.parent)

    def committed(self, name: str) -> bool:
        """Whether the marker is there."""
        return os.path.isfile(os.path.join(self.place(name), MARKER))

    def content(self, name: str) -> str:
        """SHA-256 of what the artefact's files hold, by its marker.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if its marker is damaged.
        """
        return Marker(self._marker(name)).content

    def present(self, names: Collection[str]) -> frozenset[str]:
        """Which of these are committed."""
        return frozenset(name for name in names if self.committed(name))

    def fetch(self, name: str, files: Collection[str] | None = None) -> Path:
        """The artefact's own folder, every digest (or those of `files`) verified; treat it as read-only.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if a file is missing or differs from its digest.
        """
        folder = self.place(name)  # text, because path objects cost as much as reading small files
        for file, expected in self._marker(name).items():
            if files is not None and file not in files:
                continue
            path = os.path.join(folder, file)
            if problem := difference(path, expected):
                raise ValueError(
                    f"artefact `{name}` is damaged: `{path}` {problem}. Delete the folder `{folder}`; `slimvit run` "
                    "computes what it held anew"
                )
        return Path(folder)

    def damage(self, name: str) -> list[str]:
        """What is wrong with an artefact; every file is read.

        Raises:
            FileNotFoundError: if there is no such artefact.
        """
        try:
            files = self._marker(name)
        except ValueError as error:
            return [str(error)]
        paths = {os.path.join(self.place(name), file): known for file, known in files.items()}
        return [f"`{path}` {problem}" for path, known in paths.items() if (problem := difference(path, known))]

    def names(self, prefix: str) -> Iterator[str]:
        """Names of all committed artefacts below a prefix (whole parts: `progress/ab` does not match
        `progress/abc`), sorted."""
        found: list[str] = []
        for folder, children, files in os.walk(self._folder(prefix) if prefix.strip("/") else self.root):
            if MARKER in files:
                found.append(Path(folder).relative_to(self.root).as_posix())
                children.clear()
            else:
                children[:] = [c for c in children if not c.startswith(".")]
        return iter(sorted(found))

    def inventory(self) -> Inventory:
        """Everything that is there, with sizes."""
        artefacts, leftovers = [], []
        now = self.register().now() if self.root.is_dir() else 0.0
        for folder, children, files in os.walk(self.root):
            path, whole = Path(folder), MARKER in files
            hidden = [c for c in children if c.startswith(_TEMPORARY)]
            leftovers += [_kept(path / c, self.root, now) for c in hidden]
            children[:] = [c for c in children if not c.startswith(".")]
            if whole:
                artefacts.append(_kept(path, self.root, now))
                children.clear()
            elif files and path != self.root:  # an artefact whose deletion was interrupted
                leftovers.append(_kept(path, self.root, now))
                children.clear()
        return Inventory(tuple(sorted(artefacts, key=lambda k: k.name)), tuple(leftovers))

    def free_bytes(self) -> int:
        """Room left on the disk of the root, or of the nearest folder above it that exists."""
        place = next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())
        return shutil.disk_usage(place).free

    def delete(self, name: str) -> None:
        """Remove an artefact, marker first, so that a half-deleted one does not exist. Missing is fine."""
        folder = self._folder(name)
        (folder / MARKER).unlink(missing_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)

    def register(self) -> LocalRegister:
        """Leases, below the root."""
        return LocalRegister(self.root / _LEASES)

    def _folder(self, name: str) -> Path:
        return self.root.joinpath(*parts_of(name))

    def _sweep(self, folder: Path) -> None:
        """Remove what killed writers left in this folder. How old that is, the store's own clock says: where
        this machine's is wrong, what others are writing at this moment is not old."""
        if not (found := list(folder.glob(f"{_TEMPORARY}*"))):
            return
        now = self.register().now()
        for path in found:
            with contextlib.suppress(OSError):  # gone meanwhile
                if now - path.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)

    def _marker(self, name: str) -> Contents:
        path = os.path.join(self.place(name), MARKER)
        try:
            return Marker.decode(Path(path).read_bytes()).files
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"the store `{self.root}` has no artefact `{name}`") from None
        except ValueError as error:
            raise ValueError(
                f"artefact `{name}` is damaged: its marker `{path}` cannot be read ({error!r}). Delete the folder "
                f"`{os.path.dirname(path)}`; `slimvit run` computes what it held anew"
            ) from error

    def _same_or_refuse(self, name: str, contents: Contents, folder: Path) -> None:
        if not same(self._marker(name), contents, folder):
            raise FileExistsError(
                f"artefact `{name}` is already in `{self.root}` with other content. Artefacts never change: "
                "delete it first if it is wrong"
            )
        shutil.rmtree(folder)

    def _claim(self, incoming: Path, name: str) -> bool:
        """Rename `incoming`, its marker in it, to its place. False if the name is committed already."""
        target = self._folder(name)
        while True:
            try:
                os.rename(incoming, target)
                return True
            except OSError:
                if not target.exists():
                    raise
            if self.committed(name):
                return False
            # A folder without marker: a deletion that is under way, or was interrupted. Moved aside, not emptied in
            # place: somebody else may put a whole artefact there at any moment.
            aside = target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                os.rename(target, aside)
            if os.path.isfile(aside / MARKER):  # committed between the two looks
                with contextlib.suppress(OSError):
                    os.rename(aside, target)
            shutil.rmtree(aside, ignore_errors=True)


def _kept(path: Path, root: Path, now: float) -> Kept:
    size, newest = 0, 0.0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                found = os.stat(os.path.join(folder, name))
                size, newest = size + found.st_size, max(newest, found.st_mtime)
    with contextlib.suppress(OSError):
        newest = max(newest, path.stat().st_mtime)
    return Kept(path.relative_to(root).as_posix(), size, max(0.0, now - newest))


def _move(source: Path, target: Path) -> None:
    """Rename, or copy where source and target are on different file systems."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copytree(source, target)
        shutil.rmtree(source)


def _hash_and_flush(folder: Path) -> Contents:
    """Digests of all files; the disk writes them while they are computed."""
    folders = [Path(path) for path, _, _ in os.walk(folder)]
    with ThreadPoolExecutor(1) as disk:
        flushed = disk.submit(_flush, folder)
        contents = contents_of(folder)
        flushed.result()
    for path in folders:
        _sync_folder(path)
    return contents


def _flush(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for file in files:
            with (Path(path) / file).open("rb") as handle:
                os.fsync(handle.fileno())


def _write_marker(folder: Path, contents: Contents) -> None:
    with (folder / MARKER).open("w", encoding="utf-8") as file:
        file.write(Marker(contents).encode())
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
