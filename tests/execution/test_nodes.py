"""Plans on several nodes, that is, raylets of their own on this machine: nodes die, are taken away, and come back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.events import Event, LaneUp, StageRetried
from orchestrator.training.interface import Progress
from tests.execution.nodes import Nodes, nodes
from tests.execution.plans import plan, train
from tests.execution.test_driver import Run

pytestmark = [pytest.mark.ray, pytest.mark.long]
AT_WORK = 3
"""Step at which a test strikes."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes with one CPU each, and what tests add."""
    with nodes(1, 1) as made:
        yield made


@pytest.fixture
def two_nodes(cluster: Nodes) -> Nodes:
    """With two nodes again, whatever became of those before."""
    for _ in range(2 - len(cluster.raylets)):
        cluster.add(1)
    return cluster


def run_and_strike(
    cluster: Nodes, folder: Path, label: str, strike: Callable[[Progress, LaneUp], None], **resources: Any
) -> Run:
    """Run one stage, and let something happen to it once it is at work."""
    seen: list[Event] = []

    def watch(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.kind == "step" and event.step >= AT_WORK and not struck:
            struck.append(True)
            strike(event, next(e for e in reversed(seen) if isinstance(e, LaneUp)))

    struck: list[bool] = []
    run = Run(folder, plan(train(label)), cluster.address, on_event=watch, lanes=1, **resources)
    assert struck
    assert not run.summary.failed, (list(run.summary.failed.values()), retried(run), groups(run))
    return run


def groups(run: Run) -> list[tuple[str, ...]]:
    """Nodes of every worker group that came up, in order."""
    return [event.nodes for event in run.events if isinstance(event, LaneUp)]


def retried(run: Run) -> list[tuple[str, str]]:
    return [(event.kind, event.action) for event in run.events if isinstance(event, StageRetried)]


def test_a_group_on_two_nodes_outlives_one_of_them(two_nodes: Nodes, tmp_path: Path) -> None:
    label = "steps=120 pause=0.1"

    def strike(progress: Progress, up: LaneUp) -> None:
        two_nodes.kill(up.nodes[1])

    run = run_and_strike(two_nodes, tmp_path, label, strike, workers={"min": 1, "max": 2}, max_retries=1)
    first, second = groups(run)
    assert len(set(first)) == 2, "distributed data parallel over two nodes"
    assert second == (first[0],), "the rest goes on with what is left"
    ((kind, _),) = retried(run)
    assert kind in ("node lost", "crash")
    assert run.result(label)["resumed"] >= AT_WORK - 1
    assert run.result(label)["world_size"] == 1


def test_notice_and_sigterm_lose_nothing(two_nodes: Nodes, tmp_path: Path) -> None:
    from ray._raylet import GcsClient

    label = "steps=80 pause=0.1"

    def take_away(progress: Progress, up: LaneUp) -> None:
        soon = 120_000 + int(time.time() * 1000)
        accepted, why = GcsClient(two_nodes.address).drain_node(up.nodes[0], 2, "spot", soon)
        assert accepted, why

    run = run_and_strike(two_nodes, tmp_path / "drained", label, take_away, max_retries=0)
    assert len(groups(run)) == 2, (groups(run), retried(run))
    first, second = groups(run)
    assert first != second
    assert [kind for kind, _ in retried(run)] == ["preempted"]
    last = max(e.step for e in before_retry(run) if isinstance(e, Progress))
    assert run.result(label)["resumed"] >= last, "it saved its work before it left"

    def terminate(progress: Progress, up: LaneUp) -> None:
        os.kill(int(progress.values["pid"]), signal.SIGTERM)

    run = run_and_strike(two_nodes, tmp_path / "terminated", label, terminate, max_retries=0)
    assert retried(run) == [("preempted", "retry")], "there is only one node left"
    last = max(e.step for e in before_retry(run) if isinstance(e, Progress))
    assert run.result(label)["resumed"] >= last


def before_retry(run: Run) -> list[Event]:
    return run.events[: next(i for i, e in enumerate(run.events) if isinstance(e, StageRetried))]
