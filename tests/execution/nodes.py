"""A cluster of several raylets on this machine, in a process of its own, away from every other cluster.

The head has no CPU, so work goes to the other nodes. Prints its address and the nodes as JSON; `add CPUS` on its input
adds one and prints it; ends when its input closes. With `--apart`, each node lives in a network namespace of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.execution.namespaces import Network

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass
class Nodes:
    """The cluster, as a test sees it."""

    process: subprocess.Popen[str]
    address: str = ""
    raylets: dict[str, int] = field(default_factory=dict)
    """Node id → process id of its raylet, the head left out."""
    wires: dict[str, str] = field(default_factory=dict)
    """Node id → its connection to the others, if it lives apart."""

    def add(self, cpus: int) -> str:
        """One node more; gives its id."""
        assert self.process.stdin is not None
        print(f"add {cpus}", file=self.process.stdin, flush=True)
        return self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        if "refused" in said:
            raise PermissionError(said["refused"])
        self.address = said["address"]
        self.raylets[said["node"]] = said["pid"]
        self.wires[said["node"]] = said["wire"]
        return str(said["node"])

    def kill(self, node: str) -> None:
        """As when the machine loses its power."""
        os.kill(self.raylets.pop(node), signal.SIGKILL)


@contextmanager
def nodes(*cpus: int, apart: bool = False) -> Iterator[Nodes]:
    """A cluster with a node of so many CPUs each.

    Raises:
        PermissionError: if they are to live apart, and this user may not make network namespaces.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.execution.nodes", *(["--apart"] if apart else [])],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        cluster = Nodes(process)
        for number in cpus:
            cluster.add(number)
        yield cluster
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def _take_note_of_deaths(raylets: list[subprocess.Popen[bytes]]) -> None:
    """A machine that is gone takes its processes along; here, workers end once their raylet is dead and reaped."""
    while True:
        for raylet in list(raylets):
            raylet.poll()
        time.sleep(0.5)


def main() -> None:
    from cluster.token import show_token

    show_token(starting=True)
    from ray._private import utils
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.cluster_utils import Cluster

    ensure_token_if_auth_enabled(None, create_token_if_missing=True)
    utils.write_ray_address = lambda *_: None  # else `auto` of everybody on this machine would lead here
    try:
        network = Network() if "--apart" in sys.argv else None
    except PermissionError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    folder = tempfile.mkdtemp(prefix="svn-", dir="/tmp")
    quick: dict[str, Any] = {f"health_check_{what}": 1000 for what in ("period_ms", "timeout_ms")}
    quick["health_check_failure_threshold"] = 5
    head = {"num_cpus": 0, "temp_dir": folder, "include_dashboard": False, "_system_config": quick}
    if network is not None:
        head["node_ip_address"] = network.head
    cluster = Cluster(initialize_head=True, head_node_args=head)
    raylets: list[subprocess.Popen[bytes]] = []
    threading.Thread(target=_take_note_of_deaths, args=(raylets,), daemon=True).start()
    try:
        for line in sys.stdin:
            common = {"num_cpus": int(line.split()[1]), "temp_dir": folder}
            if network is None:
                wire, node = "", cluster.add_node(**common)
            else:
                with network.another() as (wire, address):
                    node = cluster.add_node(**common, node_ip_address=address)
            raylets.append(node.all_processes["raylet"][0].process)
            said = {"address": cluster.address, "node": node.node_id, "pid": raylets[-1].pid, "wire": wire}
            print(json.dumps(said), flush=True)
    finally:
        cluster.shutdown()
        if network is not None:
            network.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
