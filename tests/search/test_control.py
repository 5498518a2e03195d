"""A search from its first proposal to its last verdict, in one process: stages are committed by hand, in any order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.local import LocalStore
from orchestrator.errors import PlanError, StoreError
from orchestrator.execution.events import Event, StageFailed, StageFinished
from orchestrator.execution.steering import Change
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan, TrainStage
from orchestrator.planning.status import finished, to_run
from orchestrator.reporting.compare import compare
from orchestrator.search.control import SearchControl
from orchestrator.training.interface import Progress, StageIO, WorkerContext
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
    "stages": [
        {"name": "teacher", "seed": 0},
        {
            "name": "student",
            "init": {"stage": "teacher"},
            "strategies": [{"name": "token_merging", "r": 0}],
            "training": {"epochs": 9},
        },
    ],
}
LR, R = "stages.student.training.optimizer.lr", "stages.student.strategies.token_merging.r"
SPACE = {LR: {"loguniform": [1e-5, 1e-1]}, R: {"int": [0, 4]}}
OPTUNA = {"algorithm": "optuna", "trials": 8, "space": SPACE, "objectives": [{"metric": "top1"}, {"metric": "macs"}]}


class Lanes:
    """Does what a driver and its lanes do, without them: runs wanted stages in an order of its own."""

    def __init__(self, control: SearchControl, store: LocalStore, folder: Path, order: int = 0) -> None:
        self.control, self.store, self.folder = control, store, folder
        self.random, self.plan, self.wanted = random.Random(order), control.plan, control.wanted()
        self.ran: list[str] = []
        self.given_up: dict[str, str] = {}
        self.failing: set[str] = set()
        self.prefer = ""
        self.numbers = itertools.count()

    def run(self, most: int = 1000) -> None:
        """Run stages until the search is at its end, or so many are done."""
        while not self.control.exhausted and len(self.ran) < most:
            done = finished(self.plan, self.store)
            ready = [d for d in sorted(self.wanted - done) if set(self.plan.stages[d].parents) <= done]
            assert ready, "the search is not at its end, and nothing can run"
            preferred = [d for d in ready if self.prefer in self.plan.stages[d].label]
            self.stage(self.random.choice(preferred or ready))

    def stage(self, digest: str) -> None:
        """One stage, epoch by epoch."""
        stage = self.plan.stages[digest]
        scratch = self.folder / f"scratch-{next(self.numbers)}"
        scratch.mkdir(parents=True)
        label = stage.label.partition("[")[0]
        if label in self.failing:
            self.take([StageFailed(digest, "no images")])
            self.wanted -= {digest} | {d for d, s in self.plan.stages.items() if digest in s.parents}
            return
        self.ran.append(digest)
        io = StageIO(self.store, scratch, report=lambda p: self.take([p]), should_stop=lambda: digest in self.given_up)
        runner = fake_search.train if isinstance(stage, TrainStage) else fake_search.measure
        try:
            runner(stage, WorkerContext(), io)  # type: ignore[arg-type]
        except fake_search.StageInterrupted:
            return
        self.take([StageFinished(digest, 0, 0.0)])

    def take(self, events: Iterable[Event | Progress]) -> None:
        change: Change | None = self.control.step(list(events))
        if change is not None:
            assert set(self.plan.stages) <= set(change.plan.stages), "a plan only grows"
            self.plan, self.wanted = change.plan, change.wanted
            self.given_up |= change.given_up


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_search, "SECONDS_AN_EPOCH", 0.0)


@pytest.fixture
def searching(tmp_path: Path) -> Callable[..., tuple[SpecDocument, LocalStore]]:
    """A spec with this search, and a store."""

    def write(search: dict[str, Any], store: str = "store", **changes: Any) -> tuple[SpecDocument, LocalStore]:
        path = tmp_path / "spec.yaml"
        content = {**SPEC, **changes, "search": search, "storage": {"root": str(tmp_path / store / "artefacts")}}
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        made = LocalStore(tmp_path / store / "artefacts")
        made.prepare()
        return load(path, resolver=registry.resolver), made

    return write


def run(found: tuple[SpecDocument, LocalStore], folder: Path, order: int = 0, most: int = 1000) -> Lanes:
    lanes = Lanes(SearchControl(*found), found[1], folder / f"{found[1].root.parent.name}-{order}-{most}", order)
    lanes.run(most)
    return lanes


def names(plan: Plan) -> list[str]:
    return [combination.name for combination in plan.combinations]


def test_a_trial_is_a_combination(searching, tmp_path):
    document, store = searching({**OPTUNA, "trials": 5})
    plan = run((document, store), tmp_path).plan
    assert plan.search is not None
    assert (plan.search.proposed, plan.search.judged) == (5, 5)
    assert len({c.stages[0] for c in plan.combinations}) == 1, "all trials start from one network"
    by_hand = {"axes": {"lr": {"path": LR, "values": []}, "r": {"path": R, "values": []}}}
    for axis, convert in (("lr", float), ("r", int)):
        by_hand["axes"][axis]["values"] = sorted({convert(c.labels[axis]) for c in plan.combinations})
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "matrix": by_hand}, sort_keys=False), encoding="utf-8")
    matrix = {c.name: c for c in make_plan(load(path, resolver=registry.resolver)).combinations}
    for combination in plan.combinations:
        assert matrix[combination.name].stages == combination.stages, "the same stages as in a matrix written out"


def test_what_finished_first_does_not_matter(searching, tmp_path):
    first = run(searching(OPTUNA, "a"), tmp_path, order=1)
    second = run(searching(OPTUNA, "b"), tmp_path, order=2)
    assert first.ran != second.ran
    assert names(first.plan) == names(second.plan)
    assert first.plan.combinations == second.plan.combinations


@pytest.mark.parametrize("most", [0, 1, 3, 8, 11])
def test_killed_and_run_again(searching, tmp_path, most):
    whole = run(searching(OPTUNA, "a"), tmp_path)
    found = searching(OPTUNA, "b")
    before = run(found, tmp_path, most=most)
    after = run(found, tmp_path, order=3)
    assert names(after.plan) == names(whole.plan)
    assert not set(before.ran) & set(after.ran), "no stage twice"
    third = run(found, tmp_path, order=4)
    assert third.control._searcher is None, "a finished search asks nobody"
    assert third.ran == []


def test_more_trials_go_on(searching, tmp_path):
    few = run(searching({**OPTUNA, "trials": 4}), tmp_path)
    more = run(searching({**OPTUNA, "trials": 7}), tmp_path, order=5)
    assert names(more.plan)[: len(names(few.plan))] == names(few.plan)
    assert more.plan.search.proposed == 7
    assert not set(more.ran) & set(few.ran)


def test_a_ledger_that_does_not_fit(searching, tmp_path):
    document, store = searching({**OPTUNA, "trials": 4})
    run((document, store), tmp_path)
    ledger = SearchControl(document, store)._ledger
    store.delete(f"{ledger._folder}/trials/00001")
    ledger.propose(1, {"lr": 0.5, "r": 1})
    found = searching({**OPTUNA, "trials": 6})
    with pytest.raises(StoreError, match=r"trial 1 of the search was .*Delete `searches/"):
        run(found, tmp_path, order=6)


def test_asha_stops_the_bad_ones_and_says_why(searching, tmp_path):
    search = {"algorithm": "grid", "space": {LR: {"values": [1e-3, 1e-5, 1e-4, 2e-3]}}, "scheduler": {"asha": {}}}
    document, store = searching(search)
    lanes = Lanes(SearchControl(document, store), store, tmp_path / "lanes")
    by_label = {stage.label: digest for digest, stage in lanes.plan.stages.items()}
    lanes.stage(by_label["teacher"])
    for lr in ("0.001", "1e-05", "0.0001", "0.002"):
        lanes.stage(by_label[f"student[lr={lr}]"])
    lanes.run()
    # By hand, after epoch 1 of 9: 10.0, then 60 / 9 = 6.7 (< 10), 75 / 9 = 8.3 (< 2/3 of the way from 6.7 to 10),
    # then 85.5 / 9 = 9.5, which is above the 67th percentile of 10, 6.7 and 8.3 (8.9), but after epoch 3 meets the 30
    # of the first with its 28.5.
    assert set(lanes.plan.stopped) == {"lr=1e-05", "lr=0.0001", "lr=0.002"}
    assert "after epoch 3 of 9: top-1 28.5 % < 30.0 %" in lanes.plan.stopped["lr=0.002"]
    assert lanes.plan.stopped["lr=1e-05"] == (
        "stopped after epoch 1 of 9: top-1 6.7 % < 10.0 %, which the best third of 1 trial had reached there"
    )
    assert not store.committed(f"stages/{by_label['student[lr=1e-05]']}")
    assert to_run(lanes.plan, finished(lanes.plan, store)) == frozenset(), "nothing of them is needed any more"
    again = SearchControl(document, store)
    assert again.exhausted
    assert again.wanted() == frozenset()

    rows = {r.name: r for r in compare(make_plan(document, store), store).rows}
    assert rows["lr=1e-05"].status == "stopped"
    assert "6.7 % < 10.0 %" in rows["lr=1e-05"].detail
    assert rows["lr=0.001"].status == "measured"
    assert any("3 of 4 combinations were stopped early" in note for note in compare(again.plan, store).notes)


def test_asha_after_a_kill_compares_with_everybody(searching, tmp_path):
    """A trial judged in the second run meets what the first run saw at that epoch."""
    search = {"algorithm": "grid", "space": {LR: {"values": [1e-3, 1e-5]}}, "scheduler": {"asha": {}}}
    document, store = searching(search)
    first = Lanes(SearchControl(document, store), store, tmp_path / "first")
    by_label = {stage.label: digest for digest, stage in first.plan.stages.items()}
    first.stage(by_label["teacher"])
    first.stage(by_label["student[lr=0.001]"])
    second = Lanes(SearchControl(document, store), store, tmp_path / "second")
    second.stage(by_label["student[lr=1e-05]"])
    assert set(second.plan.stopped) == {"lr=1e-05"}


def test_dominated_trials_lose_their_further_seeds(searching, tmp_path):
    search = {
        "algorithm": "grid",
        "space": {LR: {"values": [1e-3, 1e-5]}},
        "objectives": [{"metric": "top1"}, {"metric": "macs"}],
        "stop_dominated": True,
    }
    document, store = searching(search, matrix={"axes": {"seed": {"seeds": [0, 1, 2]}}})
    lanes = Lanes(SearchControl(document, store), store, tmp_path / "lanes")
    assert len(lanes.wanted) == 5, "the shared stage, and of both trials one training and its measurement"
    lanes.prefer = "lr=0.001"
    lanes.run()
    (stopped,) = lanes.plan.stopped.items()
    assert stopped[0] == "lr=1e-05"
    # Seeds lie 0.2 points apart, and so their standard deviation is 0.2: 90.2 on average against 60.
    assert stopped[1] == (
        "dominated after 1 seed: `lr=0.001` (3 seeds) is better in top1 by 30.2 points, beyond 2 × the spread of 0.2, "
        "and equal in macs"
    )
    measured = [c for c in lanes.plan.combinations if store.committed(f"stages/{c.measured_by}")]
    assert sum(c.name == "lr=0.001" for c in measured) == 3
    assert sum(c.name == "lr=1e-05" for c in measured) == 1
    row = next(r for r in compare(lanes.plan, store).rows if r.name == "lr=1e-05")
    assert row.status == "stopped"
    assert row.cells["top1"].value is not None, "what was measured is shown"


def test_failures_and_the_impossible_count(searching, tmp_path):
    """The student of this merging cannot be: 17 tokens less 20 a block; and a teacher without images fails."""
    space = {R: {"values": [2, 400]}}
    document, store = searching({"algorithm": "grid", "space": space})
    control = SearchControl(document, store)
    assert control.plan.search is not None
    lanes = Lanes(control, store, tmp_path / "lanes")
    lanes.failing = {"teacher"}
    lanes.run()
    verdicts = control._ledger.verdicts()
    assert {v.outcome for v in verdicts.values()} <= {"failed", "impossible"}
    assert any("no images" in v.evidence for v in verdicts.values())


def test_excluded_trials_are_impossible(searching, tmp_path):
    matrix = {
        "axes": {"smooth": {"path": "stages.student.training.label_smoothing", "values": [0.0, 0.1]}},
        "exclude": [{"smooth": 0.1}],
    }
    document, store = searching({"algorithm": "random", "trials": 6, "space": {R: {"int": [0, 4]}}}, matrix=matrix)
    lanes = run((document, store), tmp_path)
    assert lanes.plan.combinations
    assert {c.labels["smooth"] for c in lanes.plan.combinations} == {"0.0"}
    assert len(lanes.control._ledger.verdicts()) == 6
    assert all("`matrix.exclude`" in d.reasons[0] for d in lanes.plan.dropped)


def test_no_trial_left(searching):
    matrix = {"axes": {"smooth": {"path": "stages.student.training.label_smoothing", "values": [0.1]}}}
    found = searching({"algorithm": "random", "trials": 2}, matrix={**matrix, "exclude": [{"smooth": 0.1}]})
    with pytest.raises(PlanError, match=r"(?s)`matrix.exclude` leaves it out.*No trial"):
        SearchControl(*found)


def test_a_finished_search_is_planned_without_ray(searching, tmp_path):
    import subprocess
    import sys

    document, store = searching({**OPTUNA, "trials": 3})
    run((document, store), tmp_path)
    code = (
        "import sys; from pathlib import Path; from specs.load import load; from strategies import registry;"
        "from orchestrator.planning.make import make_plan; from orchestrator.search.control import SearchControl;"
        f"d = load(Path({str(document.path)!r}), resolver=registry.resolver); p = make_plan(d);"
        "from orchestrator.storage import open_store;"
        "c = SearchControl(d, open_store(d.experiment.storage));"
        "print(len(p.combinations), c.exhausted, [m for m in ('ray', 'optuna', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{len(make_plan(document, store).combinations)} True []"
