"""What is done to a run, and when: every injection follows from a seed and a number."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from tests.chaos.grid import Command, Grid
from tests.chaos.processes import Known, below, kill, strays, titled, wait_gone
from tests.chaos.servers import Servers
from tests.execution.namespaces import connect
from tests.execution.nodes import Nodes

Place = Literal["folder", "disk", "bucket", "nodes", "apart"]
"""What the run needs: a store in a folder, on a small disk of its own, in a bucket; a cluster of several nodes, or one
whose nodes live in network namespaces of their own."""
DISK_MIB = 48
_GONE_S = 90.0
"""How long what a killed driver left may live on."""


@dataclass(frozen=True)
class Injection:
    """One thing that happens to a run."""

    seed: int
    number: int
    kind: str
    after: float
    """How much of the run's log there is when it happens, as a share of an undisturbed run's lines."""
    delay: float
    """How much later it happens, as a share of an undisturbed run's mean time between two lines."""

    @classmethod
    def draw(cls, seed: int, number: int, kinds: Collection[str]) -> Injection:
        """The injection of this number. The kinds take turns, in an order of the seed's."""
        order = sorted(kinds)
        random.Random(seed).shuffle(order)
        chance = random.Random(f"{seed}/{number}")
        return cls(seed, number, order[number % len(order)], chance.uniform(0, 0.95), chance.uniform(0, 2))

    def chance(self) -> random.Random:
        """For whatever else is left to chance about it."""
        return random.Random(f"{self.seed}/{self.number}/how")


@dataclass
class Scene:
    """Where an injection happens."""

    grid: Grid
    command: Command
    servers: Servers
    known: Known
    chance: random.Random
    nodes: Nodes | None = None
    note_kill: Callable[[], None] = lambda: None
    """Called right before something dies that trains, or with which training dies."""
    damaged: set[str] = field(default_factory=set)
    """Artefacts that are not what they were."""

    def running(self) -> list[psutil.Process]:
        """The run's processes."""
        return list(strays(self.known).values())

    def one_of(self, title: str) -> psutil.Process:
        """One of the run's processes whose command line begins so, as soon as there is one."""
        while not (found := titled(self.running(), title)):
            if self.command.process.poll() is not None:
                raise Missed(f"the run ended before there was a process `{title}`")
            time.sleep(0.1)
        return self.chance.choice(found)

    def pause(self, shortest_s: float, longest_s: float) -> None:
        """As long as chance says, or until the run ends."""
        until = time.monotonic() + self.chance.uniform(shortest_s, longest_s)
        while time.monotonic() < until and self.command.process.poll() is None:
            time.sleep(0.05)


class Missed(Exception):
    """The run was over before the injection could happen."""


Strike = Callable[[Scene], str]
"""Does it, and says what was done."""


@dataclass(frozen=True)
class Kind:
    """One kind of injections."""

    strike: Strike
    place: Place = "folder"
    survives: bool = False
    """Whether the run itself goes on to its end; else the same command is given once more."""


def _sigkill(title: str) -> Strike:
    def strike(scene: Scene) -> str:
        process = scene.one_of(title)
        scene.note_kill()
        kill(process)
        return f"SIGKILL to {title} (process {process.pid})"

    return strike


def _driver(scene: Scene) -> str:
    if scene.command.process.poll() is not None:
        raise Missed("the run had ended")
    scene.note_kill()
    scene.command.process.kill()
    scene.command.process.wait()
    return "SIGKILL to the driver"


def _node(scene: Scene) -> str:
    assert scene.nodes is not None
    node = scene.chance.choice(sorted(scene.nodes.raylets))
    scene.note_kill()
    scene.nodes.kill(node)
    scene.pause(2, 15)
    scene.nodes.add(1)
    return f"SIGKILL to the raylet of node {node[:8]}; another node comes"


def _cut_off(scene: Scene) -> str:
    """A node that works on and is heard again when others have taken over what it was at."""
    assert scene.nodes is not None
    node = scene.chance.choice(sorted(scene.nodes.raylets))
    scene.note_kill()
    connect(scene.nodes.wires[node], connected=False)
    scene.pause(15, 40)
    connect(scene.nodes.wires[node], connected=True)
    _replace(scene.nodes, node)
    return f"the network of node {node[:8]} is cut for a while; another node comes"


def _frozen(scene: Scene) -> str:
    """As when a virtual machine is moved: every process stands still, and goes on as if nothing had been."""
    assert scene.nodes is not None
    node = scene.chance.choice(sorted(scene.nodes.raylets))
    still = list(below(scene.nodes.raylets[node]).values())
    scene.note_kill()
    for process in still:
        process.suspend()
    scene.pause(10, 40)
    for process in still:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    _replace(scene.nodes, node)
    return f"node {node[:8]} stands still for a while; another node comes"


def _replace(nodes: Nodes, node: str) -> None:
    """One more, as an autoscaler brings it; the old one, if it was given up, ends by itself."""
    del nodes.raylets[node]
    nodes.add(1)


def _tracking(scene: Scene) -> str:
    scene.servers.tracking.down()
    scene.pause(0.5, 8)
    scene.servers.tracking.up()
    return "SIGKILL to the tracking server, and a new start"


def _endpoint(scene: Scene) -> str:
    scene.servers.endpoint.down()
    scene.pause(0.5, 8)
    scene.servers.endpoint.up()
    return "SIGKILL to the S3 endpoint, and a new start"


def _failing(kind: str, share: float, most: int) -> Strike:
    def strike(scene: Scene) -> str:
        scene.servers.endpoint.order(f"fail {kind} {share} {most}")
        scene.pause(2, 10)
        scene.servers.endpoint.order("calm")
        return f"S3: {kind} in place of {share:.0%} of the answers, at most {most}"

    return strike


def _full_disk(scene: Scene) -> str:
    ballast = Path(scene.grid.store) / ".ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * (1 << 16))
    for_long = scene.chance.random() < 0.3
    scene.pause(60, 120) if for_long else scene.pause(1, 10)
    ballast.unlink()
    return f"no room on the store's disk for {'minutes' if for_long else 'seconds'}"


def _damage(how: Literal["truncated", "bit flipped"]) -> Strike:
    """After the driver was killed; of all files of the store that artefacts are made of, one."""

    def strike(scene: Scene) -> str:
        store = Path(scene.grid.store)

        def files() -> list[Path]:
            found = [p for kind in ("stages", "progress") for p in (store / kind).rglob("*") if p.is_file()]
            whole = [p for p in found if not any(part.startswith(".") for part in p.relative_to(store).parts)]
            return sorted(p for p in whole if p.stat().st_size)

        while not files() and scene.command.process.poll() is None:
            time.sleep(0.05)
        _driver(scene)
        wait_gone(scene.known, _GONE_S)
        path = scene.chance.choice(files())
        content = bytearray(path.read_bytes())
        place = scene.chance.randrange(len(content))
        if how == "truncated":
            del content[place:]
        else:
            content[place] ^= 1 << scene.chance.randrange(8)
        path.write_bytes(content)
        name = path.relative_to(store).as_posix()
        scene.damaged.add(name.rpartition("/")[0])
        return f"SIGKILL to the driver; {name} {how} at byte {place}"

    return strike


def _clock(scene: Scene) -> str:
    by = scene.chance.choice((-1, 1)) * scene.chance.choice((60, 3600, 86400, 30 * 86400))
    fresh = scene.grid.clock_file.with_suffix(".new")
    fresh.write_text(str(by), encoding="ascii")
    fresh.rename(scene.grid.clock_file)
    return f"the wall clock of the run's Python processes jumps by {by:+d} s"


def _lease(scene: Scene) -> str:
    """What a driver on another machine leaves when that dies, with its clock, or the mount's, far off."""
    leases = Path(scene.grid.store) / ".leases"

    def records() -> list[Path]:
        return sorted(p for p in leases.rglob("*") if p.name.isdigit())

    while not records() and scene.command.process.poll() is None:
        time.sleep(0.05)
    _driver(scene)
    wait_gone(scene.known, _GONE_S)
    by = scene.chance.choice((-1, 1)) * scene.chance.choice((3600, 86400, 365 * 86400))
    found = records()
    for path in found:
        with contextlib.suppress(ValueError):  # killed while it wrote
            record = json.loads(path.read_text(encoding="utf-8"))
            record["process"] |= {"host": "elsewhere", "machine": "another boot"}
            record["since"] += by
            path.write_text(json.dumps(record), encoding="utf-8")
        os.utime(path, (time.time() + by, time.time() + by))
    return f"SIGKILL to the driver; its {len(found)} leases are another machine's, {by:+d} s off"


KINDS = {
    "worker": Kind(_sigkill("ray::RayTrainWorker"), survives=True),
    "lane": Kind(_sigkill("ray::TrainController"), survives=True),
    "driver": Kind(_driver),
    "raylet": Kind(_sigkill("raylet")),
    "node": Kind(_node, "nodes", survives=True),
    "frozen node": Kind(_frozen, "nodes", survives=True),
    "partition": Kind(_cut_off, "apart", survives=True),
    "tracking": Kind(_tracking, survives=True),
    "endpoint": Kind(_endpoint, "bucket"),
    "s3 errors": Kind(_failing("error", 0.3, 40), "bucket"),
    "s3 cuts": Kind(_failing("cut", 0.3, 40), "bucket"),
    "s3 time-outs": Kind(_failing("hang", 0.2, 2), "bucket"),
    "full disk": Kind(_full_disk, "disk"),
    "truncated": Kind(_damage("truncated")),
    "bit flip": Kind(_damage("bit flipped")),
    "clock": Kind(_clock),  # Ray's own start does not survive it
    "lease": Kind(_lease),
}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of a few mebibytes at this folder.

    Raises:
        PermissionError: to whoever may not mount; `unshare --user --map-root-user --mount` gives that right to anybody.
    """
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "slimvit-chaos", str(folder)],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        folder.rmdir()
        raise PermissionError(f"no disk of its own can be mounted: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
