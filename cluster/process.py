"""Which process on which machine, in a form that another process can check."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process. Numbers of processes are used again, so the time of its start belongs to it."""

    host: str
    """For people."""
    machine: str
    """This boot of this machine, and the process numbers' name space: containers of one machine have their own.
    Empty where the system does not say it."""
    pid: int
    started: int
    """In ticks since the machine's boot, which no change of the date moves."""

    @classmethod
    def this(cls) -> Process:
        """The calling one."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or 0)

    def gone(self) -> bool:
        """Whether it is certain that it ended: it ran on this machine, and is not there."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> int | None:
    """`None` if there is no such process, or only what is left of one until its parent asks for its end."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] in ("Z", "X") else int(fields[19])
