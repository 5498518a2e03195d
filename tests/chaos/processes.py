"""Which processes belong to a run, however they were orphaned: whoever disturbs is made their reaper."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator

import psutil

_PR_SET_CHILD_SUBREAPER = 36
Known = Callable[[], Collection[int]]
"""Processes below this one that belong to no run: servers, which are started anew, and whatever was there before."""


@contextlib.contextmanager
def reaper() -> Iterator[None]:
    """Within this block, what is orphaned below this process becomes its child, not that of process 1. Linux only.

    Like process 1 it takes note of the deaths of those that it adopted: Ray's workers ask whether their raylet lives,
    and one of whose death nobody took note counts as alive.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the system knows no subreapers")
    end = threading.Event()
    thread = threading.Thread(target=_take_note_of_deaths, args=(end,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _take_note_of_deaths(end: threading.Event) -> None:
    """Of adopted processes only: those that were seen below another one before. `subprocess` does it for its own."""
    me, born_elsewhere = psutil.Process(), set[int]()
    while not end.wait(0.5):
        for process in me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.ppid() != me.pid:
                    born_elsewhere.add(process.pid)
                elif process.pid in born_elsewhere and process.status() == psutil.STATUS_ZOMBIE:
                    ended, _ = os.waitpid(process.pid, os.WNOHANG)  # 0 while one of its threads still lives
                    born_elsewhere.discard(ended)


def below(*roots: int) -> dict[int, psutil.Process]:
    """Living processes below these, and these themselves."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            for each in (process, *process.children(recursive=True)):
                if each.pid != os.getpid() and _lives(each):
                    found[each.pid] = each
    return found


def strays(known: Known) -> dict[int, psutil.Process]:
    """Living processes below this one that are neither known nor below one that is."""
    spared = below(*known())
    return {pid: process for pid, process in below(os.getpid()).items() if pid not in spared}


def titled(processes: Collection[psutil.Process], title: str) -> list[psutil.Process]:
    """Those whose command line begins so, oldest first; Ray's processes say there what they are."""
    return sorted((p for p in processes if title_of(p).startswith(title)), key=lambda p: p.pid)


def title_of(process: psutil.Process) -> str:
    """Command line; for programs the name of the program first, without its folder."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if words:
            return " ".join((os.path.basename(words[0]), *words[1:]))
    return ""


def kill(*processes: psutil.Process) -> None:
    """SIGKILL; those that are gone are fine."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def wait_gone(known: Known, patience_s: float) -> dict[int, psutil.Process]:
    """Wait until there are no strays; those that are still there."""
    until = time.monotonic() + patience_s
    while (left := strays(known)) and time.monotonic() < until:
        time.sleep(0.25)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
