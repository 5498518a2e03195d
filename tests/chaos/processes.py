"""Which processes belong to a run, however they were orphaned: whoever disturbs is made their reaper."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import signal
import sys
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

    Programs that signal their parent then reach this process, so within the block SIGINT from below is said and passed
    over; anybody else's interrupts as ever. To be entered in the main thread.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the system knows no subreapers")
    over = threading.Event()
    wakes = signal.signal(signal.SIGURG, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    listener = threading.Thread(target=_listen, args=(over,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGURG, wakes)
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _listen(over: threading.Event) -> None:
    while not over.is_set():
        if (found := signal.sigtimedwait({signal.SIGINT}, 0.5)) is None:
            continue
        # Of those that ended right after it, too: whoever adopts the dead and does not ask for their ends keeps them.
        senders = {p.pid: p for p in psutil.Process().children(recursive=True)}
        if found.si_pid not in senders:
            _thread.interrupt_main()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)  # else it goes on waiting
        else:
            said = title_of(senders[found.si_pid]) or "which has ended"
            print(f"SIGINT from below: process {found.si_pid}, {said}", file=sys.stderr, flush=True)


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
