"""A network of its own for each node: a bridge, and behind it network namespaces whose wires can be cut. Linux only.

Needs the right to make them (root, or `unshare --user --map-root-user --net`) and the `ip` program of iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000


class Network:
    """A bridge with an address for the head, and namespaces that are reached through it.

    Raises:
        PermissionError: if none can be made here.
    """

    def __init__(self) -> None:
        self._tag = f"sv{os.getpid()}"
        self._subnet = f"10.{200 + os.getpid() // 250 % 50}.{os.getpid() % 250}"
        self._namespaces: list[str] = []
        try:
            self._ip("link", "add", self._tag, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise PermissionError(f"no network namespaces can be made here: {said.strip()}") from error
        self._ip("address", "add", f"{self.head}/24", "dev", self._tag)
        self._ip("link", "set", self._tag, "up")

    @property
    def head(self) -> str:
        """Address on this side."""
        return f"{self._subnet}.1"

    @contextlib.contextmanager
    def another(self) -> Iterator[tuple[str, str]]:
        """Within this block, this thread and the processes that it starts live in a new namespace.

        Gives the name of its wire and its address.
        """
        number = len(self._namespaces) + 2
        name, wire, address = f"{self._tag}-{number}", f"{self._tag}w{number}", f"{self._subnet}.{number}"
        self._ip("netns", "add", name)
        self._namespaces.append(name)
        self._ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", wire, "master", self._tag, "up")
        for words in (("address", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            self._ip("-netns", name, *words)
        self._ip("-netns", name, "link", "set", "lo", "up")
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(Path("/run/netns") / name)
            yield wire, address
        finally:
            _enter_descriptor(here)
            os.close(here)

    def close(self) -> None:
        """Remove everything; what still runs inside loses its network with its last process."""
        for name in self._namespaces:
            self._ip("netns", "delete", name)
        self._ip("link", "delete", self._tag)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def connect(wire: str, connected: bool) -> None:
    """Cut a wire, or mend it."""
    subprocess.run(["ip", "link", "set", wire, "up" if connected else "down"], check=True)


def _enter(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _enter_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _enter_descriptor(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
