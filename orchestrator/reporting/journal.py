"""What happened to the stages of a plan, kept on this machine until the record in MLflow has it.

A journal is a folder with one append-only file for each process that ever ran the plan; a line is one entry:

    {"seq": 3, "at": 1790000000.25, "kind": "epoch", "stage": "<digest>", "epoch": 2, "values": {"loss": 1.9}}

A line is written by one system call before anybody is told, and flushed to disk at most a second later. So a process
that is killed loses nothing, and a machine that loses power loses a second. What an unlucky end leaves behind (half a
line, a line that cannot be read) is skipped and counted.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

Kind = Literal["started", "epoch", "finished", "failed", "stopped", "ended"]

FLUSH_S = 1.0
"""Entries reach the disk at most this long after they were written, in seconds."""
_SUFFIX = ".jsonl"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    at: float
    """Seconds since the epoch."""
    kind: Kind
    """`stopped`: a search gave the stage up. `ended`: the process ran no more; what was still open is interrupted."""
    stage: str = ""
    """Digest; empty for `ended`."""
    epoch: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """Finite numbers, of `epoch`."""
    reason: str = ""
    """Of `failed` and `stopped`."""
    source: str = ""
    """File it was read from; not written."""

    @property
    def milliseconds(self) -> int:
        """The time as MLflow counts it. Values that are sent twice carry the same time, so its servers see one."""
        return int(self.at * 1000)


class Journal:
    """The journal of one record.

    Args:
        folder: made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._seq = 0
        self._torn = False
        self._closed = threading.Event()

    @property
    def source(self) -> str:
        """Name of this process's file; empty while it has none."""
        return Path(self._file.name).name if self._file is not None else ""

    def append(self, entry: Entry) -> None:
        """Write an entry; returns at once.

        Raises:
            OSError: if the folder or the disk cannot be written.
        """
        with self._lock:
            file = self._file or self._begin()
            self._seq += 1
            content: dict[str, Any] = {"seq": self._seq, "at": entry.at, "kind": entry.kind, "stage": entry.stage}
            if entry.kind == "epoch":
                content |= {"epoch": entry.epoch, "values": entry.values}
            if entry.reason:
                content["reason"] = entry.reason
            line = json.dumps(content, allow_nan=False).encode() + b"\n"
            if self._torn:  # a full disk left half a line; this one shall not be part of it
                line = b"\n" + line
            self._torn = True
            if os.write(file.fileno(), line) == len(line):
                self._torn = False

    def flush(self) -> None:
        """Put on disk what was written."""
        if self._file is not None and not self._file.closed:
            with contextlib.suppress(OSError, ValueError):  # a disk that fails, or closed meanwhile
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and give the file free: it will not grow any more."""
        self._closed.set()
        with self._lock:
            self.flush()
            if self._file is not None:
                self._file.close()

    def reader(self) -> JournalReader:
        """Reads all files from their beginning, and then whatever is added."""
        return JournalReader(self)

    @contextlib.contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Within this block, no other process on the machine writes this record.

        Raises:
            BlockingIOError: if another process does; it reads this process's file too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "writer.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                text = "another process on this machine writes this record at the moment, and this run's part of it too"
                raise BlockingIOError(text) from error
            yield

    def discard(self) -> None:
        """Remove the files of this process and of those that ended: the record has them. For the sole writer."""
        for path in self.files():
            if path.name == self.source or ended(path):
                path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """All files, oldest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def _begin(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        name = f"{now}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}{_SUFFIX}"
        file = (self.folder / name).open("ab", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)  # held while this process lives, however it ends
        self._file = file
        # Beside the run: on a busy disk a flush may take longer than a step.
        threading.Thread(target=self._flush_regularly, name="slimvit-journal", daemon=True).start()
        return file

    def _flush_regularly(self) -> None:
        flushed = 0
        while not self._closed.wait(FLUSH_S):
            if self._seq != flushed:
                flushed = self._seq
                self.flush()


class JournalReader:
    """Follows all files of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._offsets: dict[Path, int] = {}
        self._last: dict[Path, Entry] = {}
        self._over: set[Path] = set()
        self.damaged = 0
        """Lines that could not be read."""

    def read(self) -> list[Entry]:
        """The next entries, in order within each file; empty if there are none at the moment.

        A file whose process was killed ends with an `ended` that the process could not write any more.
        """
        entries: list[Entry] = []
        for path in self._journal.files():
            if path in self._over:
                continue
            over = path.name != self._journal.source and ended(path)  # asked first: then all of it is there
            found = list(self._lines(path))
            entries += found
            if found:
                self._last[path] = found[-1]
            if over and not found:
                self._over.add(path)
                last = self._last.get(path)
                if last is not None and last.kind != "ended":
                    entries.append(Entry(last.at, "ended", source=path.name))
        return entries

    def _lines(self, path: Path) -> Iterator[Entry]:
        """Complete lines since the last time, of about a mebibyte."""
        offset = self._offsets.get(path, 0)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(complete)
        for line in complete.splitlines():
            if not line:
                continue
            try:
                yield replace(_entry(json.loads(line)), source=path.name)
            except (ValueError, KeyError, TypeError):
                self.damaged += 1


def ended(path: Path) -> bool:
    """Whether the process that wrote this file lives no more, as far as this machine can tell."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _entry(content: dict[str, Any]) -> Entry:
    kind = content["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"`{kind}` is no kind of entry")
    values = {str(key): float(value) for key, value in content.get("values", {}).items()}
    return Entry(
        at=float(content["at"]),
        kind=kind,
        stage=str(content["stage"]),
        epoch=int(content.get("epoch", 0)),
        values=values,
        reason=str(content.get("reason", "")),
    )
