"""Jobs for one thread that owns a slow or unreliable resource; their failure never reaches whoever hands them in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

R = TypeVar("R")


class Background(Generic[R]):
    """Opens a resource in a thread of its own and runs jobs on it in order.

    After a failure, jobs that may be lost (`post`) are dropped instead of failing one by one, each after its own
    time-out; a job that must not be lost (`call`) opens the resource anew and tries once more.

    Args:
        open_resource: makes the resource; called in the thread.
        complain: called in the thread with the first failure only.
    """

    def __init__(self, open_resource: Callable[[], R], complain: Callable[[Exception], None]) -> None:
        self._open = open_resource
        self._complain = complain
        self._complained = False
        self._resource: R | None = None
        self._broken = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[R], None], Future[bool] | None] | None] = queue.SimpleQueue()
        # A daemon: a server that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name="slimvit-record", daemon=True)
        self._thread.start()
        self.post(lambda resource: None)  # opens it, beside whatever the caller does next

    def post(self, job: Callable[[R], None]) -> None:
        """Run the job when its turn comes; it is dropped after a failure."""
        self._jobs.put((job, None))

    def call(self, job: Callable[[R], None], timeout_s: float | None = None) -> bool:
        """Run the job after all earlier ones and wait for it; whether it succeeded.

        Args:
            job: what to do; run a second time, on a fresh resource, if the first time fails.
            timeout_s: how long to wait; then the answer is `False`, and the job may still be running.
        """
        done: Future[bool] = Future()
        self._jobs.put((job, done))
        try:
            return done.result(timeout_s)
        except TimeoutError:
            self._say(TimeoutError(f"no answer within {timeout_s:.0f} s"))
            return False

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the jobs at hand and end the thread; gives up waiting after `timeout_s`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            if done is None:
                if not self._broken:
                    self._try(job)
            else:
                succeeded = not self._broken and self._try(job)
                if not succeeded:
                    self._resource = None
                    succeeded = self._try(job)
                done.set_result(succeeded)

    def _try(self, job: Callable[[R], None]) -> bool:
        try:
            if self._resource is None:
                self._resource = self._open()
            job(self._resource)
        except Exception as error:  # whatever a server, a driver or a disk comes up with
            self._broken = True
            self._say(error)
            return False
        self._broken = False
        return True

    def _say(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            self._complain(error)
