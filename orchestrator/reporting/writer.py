"""The thread that writes a record from its journal, through whatever happens to the server meanwhile.

The journal is the queue: the thread opens the record, sends what the journal holds and the record lacks, and follows
the journal. When anything fails, it waits, opens the record anew and begins at the journal's beginning; what the
server has is not sent again. Whoever appends to the journal never waits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from orchestrator.reporting.journal import Entry, Journal

_LOOK_S = 5.0
"""How often the journals of other processes, which give no hint, are looked at, in seconds."""


class Recorder(Protocol):
    """What is written from a journal."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Bring the record up to these entries; those it has already change nothing."""
        ...


R = TypeVar("R", bound=Recorder)


@dataclass(frozen=True)
class Patience:
    """How often a server that fails is asked again."""

    first_s: float = 1.0
    """Pause after the first failure; each further one doubles it."""
    longest_s: float = 60.0
    """Longest pause. While the run lasts, there is always another try."""
    final_tries: int = 4
    """Tries of a job that somebody waits for; one if the error is not going to pass by itself."""


@dataclass
class _Job(Generic[R]):
    run: Callable[[R], None]
    done: Future[bool] = field(default_factory=Future)
    tries: int = 0


class _Close:
    """The last thing that the thread is told."""


class Writer(Generic[R]):
    """Writes one record in a thread of its own.

    Args:
        journal: what is to be written.
        open_record: connects to the server; called in the thread, again after every failure.
        complain: told about every failure; called in the thread.
        lasting: whether an error stays until a person does something.
        patience: pauses between tries.
    """

    def __init__(
        self,
        journal: Journal,
        open_record: Callable[[], R],
        complain: Callable[[Exception], None],
        lasting: Callable[[Exception], bool] = lambda error: False,
        patience: Patience = Patience(),
    ) -> None:
        self._journal, self._open = journal, open_record
        self._complain, self._lasting, self._patience = complain, lasting, patience
        self._inbox: queue.SimpleQueue[_Job[R] | _Close | None] = queue.SimpleQueue()
        self._pause_s = patience.first_s
        self._gave_up = False
        # A daemon: a server that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name="slimvit-record", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is more in the journal."""
        self._inbox.put(None)

    def call(self, run: Callable[[R], None]) -> bool:
        """Run a job once everything in the journal is written, and wait for it; whether it succeeded.

        It is tried several times (`Patience.final_tries`), each time on a record opened anew.
        """
        job = _Job(run)
        self._inbox.put(job)
        return job.done.result()

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is in the journal, if the server answers, and end the thread; waits `timeout_s` at most."""
        self._inbox.put(_Close())
        self._thread.join(timeout_s)

    def _work(self) -> None:
        job: _Job[R] | None = None
        closing = False
        while True:
            try:
                with self._journal.sole_writer():
                    record = self._open()
                    reader = self._journal.reader()
                    while True:
                        while entries := reader.read():
                            record.apply(entries)
                        self._pause_s = self._patience.first_s
                        if job is not None:
                            job.run(record)
                            job.done.set_result(True)
                            job = None
                        if closing:
                            return
                        item = self._next()
                        job, closing = (item, False) if isinstance(item, _Job) else (None, item is not None)
            except Exception as error:  # whatever a server, a driver or a disk comes up with
                self._complain(error)
                if closing:
                    return
                if job is not None:
                    job.tries += 1
                    if job.tries >= (1 if self._lasting(error) else self._patience.final_tries):
                        self._gave_up = True
                        job.done.set_result(False)
                        job = None
            item = self._rest(interruptible=job is None)
            if isinstance(item, _Job):
                job = item
            elif item is not None:
                if self._gave_up:
                    return  # tried just now; what is in the journal is for the next run
                closing = True

    def _next(self) -> _Job[R] | _Close | None:
        """The next order; of several hints that the journal has more, one."""
        try:
            item = self._inbox.get(timeout=_LOOK_S)
            while item is None:
                item = self._inbox.get_nowait()
        except queue.Empty:
            return None
        return item

    def _rest(self, *, interruptible: bool) -> _Job[R] | _Close | None:
        """Wait before the next try; an order that comes meanwhile ends the pause and is returned."""
        until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._patience.longest_s)
        while (left := until - time.monotonic()) > 0:
            if not interruptible:
                time.sleep(left)
                return None
            try:
                item = self._inbox.get(timeout=left)
            except queue.Empty:
                return None
            if item is not None:
                self._pause_s = self._patience.first_s
                return item
        return None
