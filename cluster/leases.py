"""The leases of one run: taken, renewed in the background, watched where others hold them, given back."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from cluster.lease import BEAT_S, TTL_S, Entry, Record, Register, judge
from cluster.process import Process

log = logging.getLogger(__name__)
_WATCH_S = 2.0
"""How often a stage that another run is at is looked at."""


class Elsewhere(NamedTuple):
    """Another run holds the lease."""

    host: str
    since: float
    """Seconds since the epoch, by that run's clock."""


class Change(NamedTuple):
    """Something became known in the background."""

    name: str
    kind: Literal["lost", "free", "finished"]
    """`lost`: another run took our lease over. `free`: what another run held can be asked for again. `finished`: what
    another run held is there."""


@dataclass
class _Mine:
    record: Record
    version: str
    renewed_at: float
    """On the monotonic clock."""


@dataclass
class _Seen:
    """A version of another run's record, and since when this run has seen it."""

    version: str
    since: float


class Leases:
    """Leases of one run.

    Args:
        register: where they are written.
        finished: whether what a lease is for is there, so that nobody needs it any more.
        ttl_s, beat_s, watch_s: see `cluster.lease`; smaller in tests.
        process: whose they are; `None` = this one.
    """

    def __init__(
        self,
        register: Register,
        finished: Callable[[str], bool],
        *,
        ttl_s: float = TTL_S,
        beat_s: float = BEAT_S,
        watch_s: float = _WATCH_S,
        process: Process | None = None,
    ) -> None:
        self._register, self._finished = register, finished
        self._ttl_s, self._beat_s, self._watch_s = ttl_s, beat_s, watch_s
        self._me, self._process = uuid.uuid4().hex, process or Process.this()
        self._mine: dict[str, _Mine] = {}
        self._seen: dict[str, _Seen] = {}
        self._waiting: set[str] = set()
        self._changes: list[Change] = []
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, name: str) -> Elsewhere | Literal["taken", "finished"]:
        """Take a lease; where another run holds it, it is watched from now on.

        Raises:
            OSError: if the store cannot be reached.
        """
        with self._lock:
            self._begin()
            if name in self._mine:
                return "taken"
            while True:
                entry = self._register.read(name)
                verdict = self._judge(name, entry)
                if verdict == "held":
                    self._waiting.add(name)
                    return _holder(entry)
                # A name that nobody holds may just have been finished. Asked before writing, to leave no record.
                if self._finished(name):
                    if entry is not None:  # of one who let it go, or died, before what he began was there
                        self._register.remove(name)
                    return self._done(name)
                if self._write(name, entry):
                    if self._finished(name):  # between asking and writing
                        self.give_back(name, finished=True)
                        return self._done(name)
                    return "taken"

    def give_back(self, name: str, *, finished: bool) -> None:
        """Let a lease go. With `finished`, no trace is left; else the record stays, given up."""
        with self._lock:
            mine = self._mine.pop(name, None)
            if mine is None:
                return
            try:
                if finished:
                    self._register.remove(name)
                else:
                    self._register.write(name, replace(mine.record.renewed(), released=True), mine.version)
            except OSError as error:
                log.warning("the lease of %s was not given back; it expires by itself: %s", name, error)

    def watch(self, name: str) -> None:
        """Tell when a name that another run holds is finished, or can be asked for again."""
        with self._lock:
            self._waiting.add(name)

    def changes(self) -> list[Change]:
        """What became known since the last call."""
        with self._lock:
            found, self._changes = self._changes, []
            return found

    def held(self) -> frozenset[str]:
        """Names that this run holds."""
        with self._lock:
            return frozenset(self._mine)

    def close(self) -> None:
        """Give everything back and end."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(self._beat_s)
        for name in self.held():
            self.give_back(name, finished=False)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slimvit-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        renew_at = time.monotonic() + self._beat_s
        while not self._closed.wait(min(self._watch_s, self._beat_s)):
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + self._beat_s
                for name in self.held():
                    self._tried(self._renew, name)
                    self._drop_if_too_late(name)
            for name in self._others():
                self._tried(self._look, name)

    def _tried(self, action: Callable[[str], None], name: str) -> None:
        """Whatever goes wrong in the background, the next round tries again; a lease that expires meanwhile is lost."""
        try:
            action(name)
        except Exception as error:
            log.warning("the lease of %s: %s", name, error)

    def _others(self) -> list[str]:
        with self._lock:
            return sorted(self._waiting)

    def _renew(self, name: str) -> None:
        with self._lock:
            mine = self._mine.get(name)
            if mine is None:
                return
            record = mine.record.renewed()
            version = self._register.write(name, record, mine.version)
            if version is None:
                # An answer that was lost on the way looks like a rival: then the record is this run's own.
                entry = self._register.read(name)
                if entry is None or entry.record is None or entry.record.holder != self._me:
                    self._lose(name)
                    return
                version, record = entry.version, entry.record
            self._mine[name] = _Mine(record, version, time.monotonic())

    def _drop_if_too_late(self, name: str) -> None:
        """A lease that could not be renewed for so long may have another holder by now."""
        with self._lock:
            mine = self._mine.get(name)
            if mine is not None and time.monotonic() - mine.renewed_at > self._ttl_s:
                self._lose(name)

    def _lose(self, name: str) -> None:
        del self._mine[name]
        self._changes.append(Change(name, "lost"))

    def _look(self, name: str) -> None:
        kind: Literal["free", "finished"] | None = None
        if self._finished(name):
            kind = "finished"
        else:
            entry = self._register.read(name)
            with self._lock:
                if self._judge(name, entry) != "held":
                    kind = "free"
        if kind is not None:
            with self._lock:
                self._waiting.discard(name)
                self._changes.append(Change(name, kind))

    def _judge(self, name: str, entry: Entry | None) -> str:
        watched_s = 0.0
        if entry is None:
            self._seen.pop(name, None)
        else:
            seen = self._seen.get(name)
            if seen is None or seen.version != entry.version:
                seen = self._seen[name] = _Seen(entry.version, time.monotonic())
            watched_s = time.monotonic() - seen.since
        gone = entry is not None and entry.record is not None and entry.record.process.gone()
        return judge(entry, self._me, watched_s=watched_s, holder_gone=gone, ttl_s=self._ttl_s, beat_s=self._beat_s)

    def _write(self, name: str, entry: Entry | None) -> bool:
        before = 0 if entry is None or entry.record is None else entry.record.token
        record = Record(self._me, self._process, time.time(), before + 1)
        version = self._register.write(name, record, None if entry is None else entry.version)
        if version is None:
            after = self._register.read(name)
            if after is None or after.record is None or after.record.holder != self._me:
                return False
            version = after.version
        self._waiting.discard(name)
        self._mine[name] = _Mine(record, version, time.monotonic())
        return True

    def _done(self, name: str) -> Literal["finished"]:
        self._waiting.discard(name)
        return "finished"


def _holder(entry: Entry | None) -> Elsewhere:
    if entry is None or entry.record is None:
        return Elsewhere("another run", time.time())
    return Elsewhere(entry.record.process.host, entry.record.since)
