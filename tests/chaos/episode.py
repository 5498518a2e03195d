"""One experiment with one or more injections: run, disturb, run again, and look at what became of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.connect import short_base
from cluster.storage import ArtifactStore
from orchestrator.storage import open_store
from tests.chaos import checks
from tests.chaos.grid import ROOT, Command, Grid, Said
from tests.chaos.injections import KINDS, Injection, Missed, Place, Scene, small_disk
from tests.chaos.processes import Known, kill, strays, title_of, wait_gone
from tests.chaos.saved import Lost, Saved, lost_to
from tests.chaos.servers import BUCKET, Servers
from tests.execution.nodes import Nodes, nodes

_RUN_S = 900.0
"""A run that takes longer hangs."""
_GONE_S = 30.0
"""Processes may live on for so long after the last run."""
_NOT_RECORDED = "does not have everything yet"
_GROUPS = """
import os, sys
from cluster.token import show_token
show_token()
import ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print([g["name"] or g["placement_group_id"] for g in placement_group_table().values() if g["state"] != "REMOVED"])
"""


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing happens to."""

    weights: dict[str, str]
    lines: int
    """Of its log."""
    seconds: float
    """From its first line to its last."""


@dataclass
class Outcome:
    """What became of an experiment."""

    injections: list[Injection]
    done: list[str] = field(default_factory=list)
    """What was done to it, one text an injection; `missed: …` where the run was over before."""
    violations: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    """Ends of runs that nobody foresaw: no violation, for the same command goes on, but no good message either."""
    runs: int = 0
    """How often the command was given."""
    lost: list[Lost] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None

    def to_json(self) -> dict[str, object]:
        """For people and programs."""
        return dataclasses.asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def read(cls, file: Path) -> Outcome:
        """What `disturbed` left in the experiment's folder."""
        found = json.loads(file.read_text(encoding="utf-8"))
        found["injections"] = [Injection(**each) for each in found["injections"]]
        found["lost"] = [Lost(**each) for each in found["lost"]]
        return cls(**found | {"folder": Path(found["folder"])})


def undisturbed(folder: Path, servers: Servers) -> Undisturbed:
    """Run the experiment once and let it alone.

    Raises:
        AssertionError: if it does not finish, or leaves less than it should.
    """
    grid, known = Grid(folder, servers.tracking.address), _known(servers)
    try:
        return _look_at_undisturbed(grid, known, servers)
    finally:
        kill(*strays(known).values())


def _look_at_undisturbed(grid: Grid, known: Known, servers: Servers) -> Undisturbed:
    command = grid.start()
    assert _ends(command), command.text()
    assert command.process.returncode == 0, command.text()
    servers.tracking.wait()
    if not _finished(command):  # the server was still on its way
        again = grid.start()
        assert _ends(again), again.text()
        assert _finished(again), again.text()
    store = open_store(grid.store)
    found = [*checks.check_once(_said(grid), ()), *checks.check_leases(store)]
    found += checks.check_record(servers.tracking.database, grid.experiment, store)
    assert not found, found
    left = wait_gone(known, _GONE_S)
    assert not left, [title_of(process) for process in left.values()]
    times = [at for at, line in command.lines if line.startswith("[")]
    return Undisturbed(checks.weights(store), len(times), times[-1] - times[0])


def disturbed(folder: Path, injections: Sequence[Injection], whole: Undisturbed, servers: Servers) -> Outcome:
    """Run the experiment, and let injections of one place happen to it one after another.

    An injection that ends the run is followed by the same command.

    Raises:
        PermissionError: if it needs a disk or a network of its own and this user may not make one.
    """
    outcome, began = Outcome(list(injections), folder=folder), time.monotonic()
    (place,) = {KINDS[injection.kind].place for injection in injections}
    with contextlib.ExitStack() as stack:
        grid, cluster = _grid(folder, place, servers, stack)
        known = _known(servers)
        servers.tracking.wait()
        if place == "bucket":
            # The run sees the endpoint that fails, the checks the server behind it.
            os.environ["SLIMVIT_CACHE"] = str(folder / "cache-of-checks")
            store = open_store(f"{grid.store}?endpoint={servers.bucket}")
        else:
            store = open_store(grid.store)
        try:
            _strike_and_finish(outcome, grid, store, known, servers, cluster, whole)
        finally:
            left = strays(known)
            kill(*left.values())
        if cluster is not None:
            outcome.violations += _check_groups(grid)
        outcome.violations += _check(grid, store, servers, whole)
    outcome.seconds = time.monotonic() - began
    unforeseen = [line for command in grid.commands for _, line in command.lines if line.startswith("internal error")]
    outcome.tracebacks += [line[:300] for line in unforeseen]
    for number, command in enumerate(grid.commands):  # for those who look into a violation
        (folder / f"run-{number}.log").write_text(command.text(), encoding="utf-8")
        for left in Path(short_base()).glob(f"slimvit-ray-{command.process.pid}-*"):
            shutil.rmtree(left, ignore_errors=True)  # a killed driver's, which slimvit itself removes after a day
    (folder / "outcome.json").write_text(json.dumps(outcome.to_json(), indent=1), encoding="utf-8")
    return outcome


def _strike_and_finish(
    outcome: Outcome,
    grid: Grid,
    store: ArtifactStore,
    known: Known,
    servers: Servers,
    cluster: Nodes | None,
    whole: Undisturbed,
) -> None:
    """The disturbed run, and the same command again until it is finished."""
    kills: list[tuple[float, dict[str, tuple[int, float]]]] = []
    damaged: set[str] = set()
    on_disk = Path(grid.store) if "://" not in grid.store else None
    with Saved(store, on_disk) as saved:
        command = grid.start()
        survives = True
        for injection in outcome.injections:
            if command.process.poll() is not None and command.process.returncode != 0:
                command, survives = grid.start(), True
            _wait_for_moment(injection, grid, command, whole)

            def note_kill() -> None:
                before = saved.now()
                kills.append((time.time(), before))

            if command.process.poll() is not None:
                outcome.done.append("missed: the run had ended")
                continue
            scene = Scene(grid, command, servers, known, injection.chance(), cluster, note_kill, damaged)
            try:
                outcome.done.append(KINDS[injection.kind].strike(scene))
            except Missed as missed:
                outcome.done.append(f"missed: {missed}")
                continue
            survives = survives and KINDS[injection.kind].survives
        if not _ends(command):
            outcome.violations.append(f"the run did not end within {_RUN_S:.0f} s")
            kill(*strays(known).values())
        elif survives and command.process.returncode != 0:
            outcome.violations.append(f"the run ended with {command.process.returncode}: {_last(command)}")
        if not _finished(command):
            servers.tracking.wait()
            command = grid.start()
            if not _ends(command) or not _finished(command):
                what = f"the same command ended with {command.process.poll()}: {_last(command)}"
                outcome.violations.append(what)
        for pid, process in wait_gone(known, _GONE_S).items():
            outcome.violations.append(f"process {pid} is left: {title_of(process)[:100]}")
        digests = checks.labels(store)
        said = _said(grid)
        for at, before in kills:
            outcome.lost += lost_to(at, before, said, digests, saved)
    outcome.runs = len(grid.commands)
    for lost in outcome.lost:
        if lost.resumed_step < lost.saved_step and not _touched(digests[lost.label], damaged):
            outcome.violations.append(
                f"`{lost.label}` went on from step {lost.resumed_step}, though step {lost.saved_step} was saved"
            )
    spared = {label for label, digest in digests.items() if _touched(digest, damaged)}
    outcome.violations += checks.check_once(said, spared)


def _check(grid: Grid, store: ArtifactStore, servers: Servers, whole: Undisturbed) -> Iterator[str]:
    """What the last run left."""
    told = "\n".join(command.text() for command in grid.commands)
    try:
        yield from checks.check_weights(checks.weights(store), whole.weights, told)
        yield from checks.check_leases(store)
        yield from checks.check_record(servers.tracking.database, grid.experiment, store)
    except (ValueError, OSError) as error:
        yield f"the store cannot be read: {error}"


def _check_groups(grid: Grid) -> Iterator[str]:
    """Of a cluster that outlives the run, nothing may be reserved any more."""
    asked = subprocess.run(
        [sys.executable, "-c", _GROUPS, grid.cluster],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    answer = asked.stdout.strip().splitlines()[-1:] or [asked.stderr[-500:]]
    if answer != ["[]"]:
        yield f"placement groups are left: {answer[0]}"


def _grid(folder: Path, place: Place, servers: Servers, stack: contextlib.ExitStack) -> tuple[Grid, Nodes | None]:
    """The experiment at its place, and the cluster if it needs one of several nodes."""
    tracking = servers.tracking.address
    if place == "bucket":
        endpoint = servers.endpoint
        endpoint.down()
        endpoint.seed = sum(folder.name.encode())
        endpoint.up()
        return Grid(folder, tracking, store=f"s3://{BUCKET}/{folder.name}", endpoint=endpoint.address), None
    if place in ("nodes", "apart"):
        cluster = stack.enter_context(nodes(1, 1, apart=place == "apart"))
        return Grid(folder, tracking, cluster=cluster.address), cluster
    grid = Grid(folder, tracking)
    if place == "disk":
        stack.enter_context(small_disk(Path(grid.store)))
    return grid, None


def _known(servers: Servers) -> Known:
    """What is there before the run, and what the servers are by now."""
    before = frozenset(strays(tuple))
    return lambda: before | servers.pids()


def _wait_for_moment(injection: Injection, grid: Grid, command: Command, whole: Undisturbed) -> None:
    wanted = int(injection.after * whole.lines)
    while grid.progress < wanted and command.process.poll() is None:
        time.sleep(0.02)
    until = time.monotonic() + injection.delay * whole.seconds / whole.lines
    while time.monotonic() < until and command.process.poll() is None:
        time.sleep(0.02)


def _ends(command: Command) -> bool:
    try:
        command.process.wait(_RUN_S)
    except subprocess.TimeoutExpired:
        return False
    time.sleep(0.5)  # its last lines are read
    return True


def _finished(command: Command) -> bool:
    return command.process.returncode == 0 and _NOT_RECORDED not in command.text()


def _last(command: Command) -> str:
    return " | ".join(line for _, line in command.lines[-4:])[-600:]


def _said(grid: Grid) -> list[Said]:
    return [s for command in grid.commands for s in command.said()]


def _touched(digest: str, damaged: set[str]) -> bool:
    """Whether anything of a stage was damaged."""
    return any(digest in name for name in damaged)
