"""A Ray cluster on this machine that outlives the command that started it, and is ended by another."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.connect import OBJECT_STORE_BYTES, short_base, usable_cpus
from cluster.ship import package_root
from cluster.state import forget, recall, remember
from cluster.token import make_token

if TYPE_CHECKING:
    import psutil

    from specs.cluster import LocalCluster

_KIND = "local"
_LOOPBACK = "127.0.0.1"
_ADDRESS_FILE = "ray_current_cluster"
"""Ray writes the address into this file of its folder once the head answers."""
_START_PATIENCE_S = 180.0
_STOP_PATIENCE_S = 30.0
_POLL_S = 0.2
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


class MachineError(RuntimeError):
    """A cluster on this machine could not be started or ended; the message has the way out."""


@dataclass(frozen=True)
class Machine:
    """A cluster that was started on this machine."""

    name: str
    address: str
    """`host:port` of its control service."""
    dashboard: str
    """URL of its dashboard."""
    folder: str
    """Ray's sessions and logs; no other cluster writes there."""
    pid: int
    """The process that holds all others: they end with it."""
    created: float
    """When that process began, in seconds since 1970: a pid alone may have been given to another since."""


def running(name: str) -> Machine | None:
    """The cluster of this name, if it was started here and still runs."""
    known = recall(_KIND, name)
    if known is None:
        return None
    try:
        machine = Machine(**known)
    except TypeError:  # written by another version
        return None
    return machine if _holder(machine) is not None else None


def start(name: str, spec: LocalCluster) -> Machine:
    """Start a head with a token, its dashboard on loopback, and a folder of its own; it goes on after this process.

    Ray puts its control service on the machine's own address even when told to use loopback; the token guards it.

    A cluster of this name that runs already is returned as it is.

    Raises:
        MachineError: if the dashboard's port is taken, or Ray does not come up.
    """
    already = running(name)
    if already is not None:
        return already
    port = _dashboard_port(spec.dashboard_port)
    make_token()
    folder = Path(tempfile.mkdtemp(prefix=f"slimvit-{name[:11]}-", dir=short_base()))
    log = folder / "start.log"
    cpus = spec.cpus if spec.cpus is not None else usable_cpus()
    command = [
        *(*_RAY, "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", _LOOPBACK, "--port", "0", "--temp-dir", str(folder)),
        *("--include-dashboard", "true", "--dashboard-host", _LOOPBACK, "--dashboard-port", str(port)),
        # Ray's default ports of these two belong to the first cluster on a machine alone.
        *("--dashboard-agent-listen-port", str(_free_port()), "--ray-client-server-port", str(_free_port())),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--num-cpus", str(cpus)),
        *(() if spec.gpus is None else ("--num-gpus", str(spec.gpus))),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            cwd=folder,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
        )
    try:
        address = _wait_for_address(process, folder, log)
    except BaseException:
        _end(process.pid, folder)
        raise
    machine = Machine(name, address, f"http://{_LOOPBACK}:{port}", str(folder), process.pid, _created(process.pid))
    remember(_KIND, name, asdict(machine))
    return machine


def stop(name: str) -> Machine | None:
    """End the cluster of this name, whatever state it is in, and nothing else on this machine.

    Returns:
        What was ended; `None` if no such cluster was running.

    Raises:
        MachineError: if a process of it cannot be ended.
    """
    machine = running(name)
    known = recall(_KIND, name)
    if machine is not None:
        left = _end(machine.pid, Path(machine.folder))
    elif known is not None and isinstance(known.get("folder"), str):
        left = _end(None, Path(known["folder"]))
    else:
        left = []
    if left:
        raise MachineError(
            f"processes of the cluster `{name}` do not end: {', '.join(map(str, left))}; end them by hand"
        )
    if known is not None and isinstance(known.get("folder"), str) and Path(known["folder"]).name.startswith("slimvit-"):
        shutil.rmtree(known["folder"], ignore_errors=True)
    forget(_KIND, name)
    return machine


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(package_root()), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": path, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}


def _dashboard_port(wanted: int) -> int:
    if wanted == 0:
        return _free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, wanted))
        except OSError as error:
            raise MachineError(
                f"port {wanted} of this machine is taken ({error.strerror}), perhaps by another cluster's dashboard. "
                "Set `cluster.dashboard_port` to another one, or to 0 for any free one"
            ) from error
    return wanted


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for_address(process: subprocess.Popen[bytes], folder: Path, log: Path) -> str:
    until = time.monotonic() + _START_PATIENCE_S
    while time.monotonic() < until:
        if (folder / _ADDRESS_FILE).is_file() and (text := (folder / _ADDRESS_FILE).read_text().strip()):
            return text
        if process.poll() is not None:
            raise MachineError(f"Ray did not start: {_last_words(log)}")
        time.sleep(_POLL_S)
    raise MachineError(f"Ray did not start within {_START_PATIENCE_S:.0f} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"


def _created(pid: int) -> float:
    import psutil

    created: float = psutil.Process(pid).create_time()
    return created


def _holder(machine: Machine) -> psutil.Process | None:
    import psutil

    try:
        process = psutil.Process(machine.pid)
        if process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - machine.created) < 1.0:
            return process
    except psutil.NoSuchProcess:
        pass
    return None


def _end(pid: int | None, folder: Path) -> list[int]:
    """Ask the holder to end, then end what is left of its session; returns the pids that would not."""
    import psutil

    if pid is not None:
        try:
            os.kill(pid, signal.SIGTERM)
            psutil.wait_procs([psutil.Process(pid)], timeout=_STOP_PATIENCE_S)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    left = _of_session(folder)
    for process in left:
        process.kill()
    _, alive = psutil.wait_procs(left, timeout=_STOP_PATIENCE_S)
    return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _of_session(folder: Path) -> list[psutil.Process]:
    """This user's processes whose command line names the cluster's own folder."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.uids().real == os.getuid()
            if ours and any(str(folder) in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
