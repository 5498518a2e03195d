"""The artefact store on a folder of the local disk or of a shared mount."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cluster.storage import MARKER

_TEMPORARY = ".incoming-"
"""Prefix of folders that are still being written; they are no artefacts, whatever they hold."""
Contents = dict[str, dict[str, Any]]
"""Relative path → `sha256` and `size` of the file."""
_READ_BYTES = 1 << 20
_ABANDONED_S = 24 * 3600.0
"""A folder that has been arriving for so long belongs to a writer that was killed."""
_RIVAL_WAIT_S = 1.0
"""How long a commit waits for the marker of somebody who is committing the same name at this moment."""


class LocalStore:
    """Folders below a root; see `cluster.storage.ArtifactStore` for what the methods promise.

    Files arrive in a temporary sibling, are flushed to disk, and the sibling is renamed; the marker follows last, by
    an atomic rename. So a reader sees an artefact whole or not at all, whenever the writer is killed. Objects hold
    nothing but the root: they can be sent to other processes and nodes that mount it.

    Args:
        root: folder of the store; made on the first commit. `~` is expanded and the path made absolute, because
            workers run elsewhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self._root = str(self.root)

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

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

    def scratch(self) -> Path:
        """A new folder that every node which mounts the store sees, and that is no artefact. The caller removes it."""
        folder = self.root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder

    def commit(self, name: str, folder: Path) -> None:
        """Move the files of `folder` into the store and write the marker last; `folder` is gone afterwards.

        Raises:
            FileExistsError: if the artefact exists with other content.
            OSError: if the store cannot be written.
        """
        target = self._folder(name)
        contents = _contents(folder)
        if self.committed(name):
            self._same_or_refuse(name, contents, folder)
            return
        if not self.root.is_dir():
            self.prepare()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent != self.root:  # there `scratch` folders lie, which live as long as a run
            _sweep(target.parent)
        incoming = target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}"
        _move(folder, incoming)
        try:
            if not self._claim(incoming, name):
                self._same_or_refuse(name, contents, incoming)
                return
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        marker = target / f".{MARKER}-{uuid.uuid4().hex}"
        with marker.open("w", encoding="utf-8") as file:
            json.dump({"format": 1, "files": contents}, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(marker, target / MARKER)
        _sync_folder(target)
        _sync_folder(target.parent)

    def committed(self, name: str) -> bool:
        """Whether the marker is there."""
        return os.path.isfile(os.path.join(self._place(name), MARKER))

    def fetch(self, name: str, files: Collection[str] | None = None) -> Path:
        """The artefact's own folder, every digest (or those of `files`) verified; treat it as read-only.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if a file is missing or differs from its digest.
        """
        folder = self._place(name)  # text, because path objects cost as much as reading small files
        for file, expected in self._marker(name).items():
            if files is not None and file not in files:
                continue
            path = os.path.join(folder, file)
            try:
                size, digest = _size_and_sha256(path)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                problem = "is missing"
            else:
                if size != expected["size"]:
                    problem = f"has {size} bytes instead of {expected['size']}"
                elif digest != expected["sha256"]:
                    problem = f"has SHA-256 {digest[:12]}… instead of {expected['sha256'][:12]}…"
                else:
                    continue
            raise ValueError(
                f"artefact `{name}` is damaged: `{path}` {problem}. Delete the folder `{folder}`; `slimvit run` "
                "computes what it held anew"
            )
        return Path(folder)

    def names(self, prefix: str) -> Iterator[str]:
        """Names of all committed artefacts below a prefix (whole parts: `progress/ab` does not match
        `progress/abc`), sorted."""
        found: list[str] = []
        for folder, children, files in os.walk(self._folder(prefix) if prefix.strip("/") else self.root):
            if MARKER in files:
                found.append(Path(folder).relative_to(self.root).as_posix())
                children.clear()
            else:
                children[:] = [c for c in children if not c.startswith(_TEMPORARY)]
        return iter(sorted(found))

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

    def _folder(self, name: str) -> Path:
        return self.root.joinpath(*_parts(name))

    def _place(self, name: str) -> str:
        """The same as text."""
        return os.path.join(self._root, *_parts(name))

    def _marker(self, name: str) -> Contents:
        path = os.path.join(self._place(name), MARKER)
        try:
            with open(path, "rb") as file:
                marker = json.load(file)
            return {
                file: {"sha256": str(known["sha256"]), "size": int(known["size"])}
                for file, known in marker["files"].items()
            }
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"the store `{self.root}` has no artefact `{name}`") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"artefact `{name}` is damaged: its marker `{path}` cannot be read ({error!r}). Delete the folder "
                f"`{os.path.dirname(path)}`; `slimvit run` computes what it held anew"
            ) from error

    def _same_or_refuse(self, name: str, contents: Contents, folder: Path) -> None:
        if self._marker(name) != contents:
            raise FileExistsError(
                f"artefact `{name}` is already in `{self.root}` with other content. Artefacts never change: "
                "delete it first if it is wrong"
            )
        shutil.rmtree(folder)

    def _claim(self, incoming: Path, name: str) -> bool:
        """Rename `incoming` to its place. False if a rival committed the same name meanwhile."""
        target = self._folder(name)
        patience = time.monotonic() + _RIVAL_WAIT_S
        while True:
            try:
                os.rename(incoming, target)
                return True
            except OSError:
                if not target.exists():
                    raise
            # A folder is in the way: a rival between rename and marker, or what a killed writer left.
            if self.committed(name):
                return False
            if time.monotonic() > patience:
                shutil.rmtree(target, ignore_errors=True)
            else:
                time.sleep(0.02)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in this folder."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _contents(folder: Path) -> Contents:
    """Digest and size of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): dict(zip(("size", "sha256"), _size_and_sha256(str(path)), strict=True))
        for path in files
    }


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _parts(name: str) -> tuple[str, ...]:
    """The parts of an artefact's name."""
    parts = tuple(part for part in name.split("/") if part)
    if not parts or any(part in ("..", ".") or part.startswith(_TEMPORARY) for part in parts):
        raise ValueError(f"`{name}` is no artefact name; names look like `stages/<digest>`")
    return parts


def _move(source: Path, target: Path) -> None:
    """Rename, or copy where source and target are on different file systems; then flush everything to disk."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copytree(source, target)
        shutil.rmtree(source)
    for folder, _, files in os.walk(target):
        for file in files:
            with (Path(folder) / file).open("rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
