"""Trials that cannot run or be planned, whenever they are proposed: they fail with a reason, and the rest goes on.

The search, the real queue and one lane in one process; stages are those of `fake_search`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.local import LocalStore
from orchestrator.errors import PlanError
from orchestrator.execution.admission import Resources, never_runs
from orchestrator.execution.events import StageFailed
from orchestrator.execution.handed import sort_out, to_queue
from orchestrator.execution.queue import StageQueue
from orchestrator.execution.shares import Shares
from orchestrator.planning.feasible import worker_counts
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import TrainStage
from orchestrator.reporting.compare import compare
from orchestrator.search.control import SearchControl
from orchestrator.training.interface import StageIO, WorkerContext
from specs.load import SpecDocument, load
from strategies import registry
from tests.execution import fake_search

SPEC: dict[str, Any] = {
    "name": "searched",
    "data": {"kind": "sample"},
    "student": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 3},
    },
    "stages": [{"name": "teacher", "seed": 0}, {"name": "student", "init": {"stage": "teacher"}}],
}
BATCH, THREADS = "stages.student.training.batch_size", "measurement.threads"
NODES: Sequence[Resources] = [{"CPU": 8.0}]

Write = Callable[..., tuple[SpecDocument, LocalStore]]


@pytest.fixture
def searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A spec with this search, and a store."""
    monkeypatch.setattr(fake_search, "SECONDS_AN_EPOCH", 0.0)

    def write(search: dict[str, Any], **changes: Any) -> tuple[SpecDocument, LocalStore]:
        path, root = tmp_path / "spec.yaml", tmp_path / "artefacts"
        content = {**SPEC, **changes, "search": search, "storage": {"root": str(root)}}
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        store = LocalStore(root)
        store.prepare()
        return load(path, resolver=registry.resolver), store

    return write


class Run:
    """Runs a search to its end, as the driver does; a lane that is told to end comes back as what waits wants it."""

    def __init__(self, document: SpecDocument, store: LocalStore, folder: Path) -> None:
        self.resources, self.store, self.folder = document.experiment.resources, store, folder
        self.control = SearchControl(document, store)
        self.ran: list[tuple[str, int]] = []
        """Label of each stage, and on how many workers."""
        self.failed: dict[str, str] = {}
        shares = Shares(partial(worker_counts, resources=self.resources))
        self.queue = StageQueue(*self.handed(self.control.wanted()), shares=shares, open_ended=True)
        self.turn, self.lives, self.size = 0, 0, 0

    def handed(self, wanted: frozenset[str]) -> tuple[Any, ...]:
        plan = self.control.plan
        some, refused = sort_out(plan, wanted, lambda stage: never_runs(stage, self.resources, NODES))
        return *to_queue(plan, some, wanted - some), refused

    def to_the_end(self) -> Run:
        for _ in range(200):
            state = self.queue.poll()
            self.failed |= {e.stage: e.reason for e in state.events if isinstance(e, StageFailed)}
            change = self.control.step(state.events)
            if change is not None:
                self.queue.add(*self.handed(change.wanted))
            elif self.control.exhausted and not state.unsettled:
                return self
            else:
                self.work(max(state.sizes[0] if state.sizes and state.sizes[0] else (self.resources.fewest_workers,)))
        raise AssertionError("the search does not come to its end")

    def work(self, wanted: int) -> None:
        if not self.size:
            self.size, self.turn, self.lives = wanted, 0, self.lives + 1
            self.queue.join(0, f"life {self.lives}", 0, wanted, "host:1 cpu")
        found = self.queue.ask(0, f"life {self.lives}", self.turn)
        if found.kind == "end":
            self.queue.left(0)
            self.size = 0
        elif found.stage is not None:
            stage, self.turn = found.stage, self.turn + 1
            scratch = self.folder / f"scratch-{len(self.ran)}"
            scratch.mkdir()
            self.ran.append((stage.label, self.size))
            runner: Any = fake_search.train if isinstance(stage, TrainStage) else fake_search.measure
            runner(stage, WorkerContext(), StageIO(self.store, scratch))
            self.queue.finish(0, f"life {self.lives}", stage.digest, {})


def test_later_trials_that_cannot_run_fail_with_the_reason(searching: Write, tmp_path: Path) -> None:
    """The searcher knows of one trial at a time, so that those that cannot run come while others have run."""
    space = {BATCH: {"values": [32, 33, 64]}, THREADS: {"values": [1, 64]}}
    search = {"algorithm": "optuna", "trials": 8, "concurrent": 1, "seed": 3, "space": space}
    document, store = searching(search, resources={"workers": 2})
    run = Run(document, store, tmp_path).to_the_end()
    rows = {row.name: row for row in compare(run.control.plan, store, failures=run.failed).rows}
    kinds = {name: ("33" in name.partition(",")[0], "threads=64" in name) for name in rows}
    assert {(False, False), (True, False)} <= set(kinds.values()), "of both kinds, or the test shows nothing"
    assert (False, True) in kinds.values()
    for name, (odd, too_many) in kinds.items():
        assert rows[name].status == ("failed" if odd or too_many else "measured"), name
        if odd:
            assert "33 cannot be shared by 2 workers" in rows[name].detail
        elif too_many:
            assert "to be measured with `threads: 64`, but the cluster has 8 CPUs" in rows[name].detail
    assert not any("batch_size=33" in label or "threads=64" in label for label, _ in run.ran)
    assert [label for label, _ in run.ran].count("teacher") == 1


def test_the_batch_of_each_stage_decides_on_how_many_workers_it_is_trained(searching: Write, tmp_path: Path) -> None:
    search = {"algorithm": "grid", "space": {BATCH: {"values": [24, 25, 26]}}}
    stages = [{"name": "student"}]
    document, store = searching(search, stages=stages, resources={"workers": {"min": 3, "max": 8}})
    run = Run(document, store, tmp_path).to_the_end()
    trained = [one for one in run.ran if not one[0].startswith("measure")]
    assert sorted(trained) == [("student[batch_size=24]", 8), ("student[batch_size=25]", 5)]
    (reason,) = run.failed.values()
    assert "no number of workers from 3 to 8 shares its `training.batch_size` 26" in reason


@pytest.mark.parametrize(("batches", "stuck"), [([33, 35], True), ([33, 32], False)])
def test_a_search_that_cannot_start_at_all_is_refused_before_it_runs(
    searching: Write, batches: list[int], stuck: bool
) -> None:
    search = {"algorithm": "optuna", "trials": 3, "concurrent": 1, "space": {BATCH: {"values": batches}}}
    control = SearchControl(*searching(search, resources={"workers": 2}))
    assert bool(control.obstacles()) == stuck


def test_trials_that_cannot_be_planned_are_left_out(searching: Write) -> None:
    """A trial whose seeds are one and the same run: nothing that the first value of the dimension shows."""
    search = {"algorithm": "random", "trials": 6, "space": {"stages.student.seed": {"values": [None, 7]}}}
    document, store = searching(search, matrix={"axes": {"repeat": {"seeds": [0, 1]}}})
    control = SearchControl(document, store)
    plan = make_plan(document, store)
    assert {c.name for c in plan.combinations} == {"seed=null"}
    assert [(d.name, "are one and the same run" in d.reasons[0]) for d in plan.dropped] == [("seed=7", True)]
    assert {v.outcome for v in control._ledger.verdicts().values()} == {"impossible"}
    assert {d for c in plan.combinations for d in c.stages} == set(plan.stages)


def test_a_mistake_of_the_spec_is_still_one(searching: Write) -> None:
    search = {"algorithm": "random", "trials": 2, "space": {BATCH: {"values": [8, 16]}}}
    with pytest.raises(PlanError, match="vit_tinny"):
        SearchControl(*searching(search, measurement={"baseline": {"model": "vit_tinny_patch16_224"}}))
    both = [{"name": "student", "seed": 0}]
    with pytest.raises(PlanError, match="are one and the same run"):
        SearchControl(*searching(search, stages=both, matrix={"axes": {"repeat": {"seeds": [0, 1]}}}))
