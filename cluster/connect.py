"""Start an embedded Ray cluster, or connect to a running one; take down only what was started here."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.refusal import refusal
from cluster.ship import bundle, package_root
from cluster.token import has_token, show_token

_PREFIX = "slimvit-ray-"
_LONGEST_BASE = 14
"""Ray puts UNIX sockets below its folder, whose paths the kernel limits to 107 bytes; our part and Ray's
(`/slimvit-ray-PID-abcdefgh/session_2026-11-22_21-35-25_446712_PID/sockets/plasma_store`) take up to 93."""
_REACH_TIMEOUT_S = 5.0
_KEPT_S = 24 * 3600.0
OBJECT_STORE_BYTES = 256 * 2**20
"""Artefacts travel through the store; Ray's own objects here are a few kilobytes."""
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entry point of a submitted job, whose code was shipped with it."""


class ClusterUnreachable(ConnectionError):
    """No cluster answers at this address; the message has the way out."""


@dataclass
class Connection:
    """A cluster that this process is connected to."""

    address: str
    """`host:port` of the cluster's control service."""
    dashboard_url: str | None
    """The Ray dashboard; `None` if the cluster has none."""
    started: bool
    """Whether the cluster was started here and ends with this connection."""
    folder: Path
    """Private folder on this machine: Ray's session and logs if `started`."""
    keep_folder: bool = False
    """Set it to leave the folder behind, for its logs."""


@contextmanager
def connect(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Connection]:
    """Connect this process to a cluster for the duration of a `with` block.

    Without an address, a cluster is started on this machine: its own folder, its own ports, dashboard on loopback,
    token authentication on; other clusters on the machine neither see it nor are touched by it. Python on its workers
    finds this project's packages, whether they are installed there or not.

    Args:
        address: `host:port` of a cluster that this machine is a node of, or `auto`; `None` starts one.
        num_cpus: CPU cores of a started cluster; `None` = those this process may use.

    Raises:
        ClusterUnreachable: if there is no cluster at the address, or none can be started.
    """
    # Ray names its Train runs in the dashboard only with this, and reads it when a run starts.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    # How often Train looks at its workers, in seconds: the grain at which a death is noticed and an end is seen.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # On a machine that is busy, Ray's dashboard takes longer to start than Ray waits by itself.
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "300")
    # Nobody takes away the one node of a cluster that lives and dies with this run: one process less for each lane.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if address is None else "1"
    show_token(starting=address is None)
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=short_base()))
    connection: Connection | None = None
    try:
        if address is None:
            connection = _start(folder, num_cpus if num_cpus is not None else usable_cpus())
        else:
            connection = _join(address, folder)
        yield connection
    finally:
        _disconnect()
        if connection is None or not connection.keep_folder:
            shutil.rmtree(folder, ignore_errors=True)


def usable_cpus() -> int:
    """CPU cores that this process may use: its affinity, within its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or of the first version: affinity alone decides
        pass
    return cores


def _start(folder: Path, num_cpus: int) -> Connection:
    import ray

    path = os.pathsep.join(p for p in (str(package_root()), os.environ.get("PYTHONPATH", "")) if p)
    try:
        with _keep_signal_handlers():
            context = ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                _temp_dir=str(folder),
            )
    except Exception as error:  # Ray raises plain ones when one of its processes does not come up
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ClusterUnreachable(
            f"no Ray cluster could be started on this machine: {lines[-1][:300]}. It may be out of memory, room in "
            "its temporary folder, or patience, if it is very busy; nothing is lost, and the same command goes on"
        ) from error
    return Connection(_info(context)["address"], _url(context.dashboard_url), started=True, folder=folder)


def _join(address: str, folder: Path) -> Connection:
    import ray

    if "://" in address:
        raise ClusterUnreachable(
            f"`{address}` is a client or dashboard address; a run needs `host:port` of the cluster's control service "
            "(or `auto` on one of its nodes). From outside the cluster use `slimvit submit --address "
            "http://HOST:8265`"
        )
    _check_reachable(address)
    # In a submitted job the code came with the job; everywhere else it is sent along.
    runtime_env = {} if _IN_JOB in os.environ else {"working_dir": str(bundle(folder / "code"))}
    try:
        with _keep_signal_handlers():
            context = ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env or None
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterUnreachable(refusal(address, error, has_token=has_token())) from error
    return Connection(_info(context)["address"], _url(context.dashboard_url), started=False, folder=folder)


def _check_reachable(address: str) -> None:
    """Ray itself tries for a minute and then aborts the process; a plain connection tells at once."""
    if address in ("auto", "local"):
        return
    match = re.fullmatch(r"\[?(?P<host>[^\[\]]+)\]?:(?P<port>\d+)", address)
    if match is None:
        raise ClusterUnreachable(f"`{address}` is no address; it looks like `10.0.0.1:6379`, or `auto`")
    try:
        socket.create_connection((match["host"], int(match["port"])), timeout=_REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(
            f"no Ray cluster answers at `{address}` ({error}). Check the address that `ray start --head` printed and "
            "that the port is open; without `--address` a cluster is started on this machine"
        ) from error


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself; the caller's handlers stay in charge."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _disconnect() -> None:
    import ray

    if ray.is_initialized():
        with _keep_signal_handlers():
            ray.shutdown()


def _info(context: Any) -> dict[str, str]:
    """Ray types what `init` returns by a base class that lacks this."""
    info: dict[str, str] = context.address_info
    return info


def _url(address: str | None) -> str | None:
    return f"http://{address}" if address else None


def short_base() -> str:
    """A temporary folder whose path is short enough for Ray's sockets."""
    base = tempfile.gettempdir()
    return base if len(base) <= _LONGEST_BASE else "/tmp"


def _sweep() -> None:
    """Remove the folders of runs on this machine that ended a day ago or more: of those that were killed before they
    could do it themselves, and of those that left logs behind."""
    for folder in Path(short_base()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).split("-")[0]
        try:
            found = folder.stat()
            if found.st_uid == os.getuid() and owner.isdigit() and time.time() - found.st_mtime > _KEPT_S:
                os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody else's process or folder, or gone meanwhile
            continue
