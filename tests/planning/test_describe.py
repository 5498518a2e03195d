"""Status, tree, JSON and explanations against a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.local import LocalStore
from orchestrator.errors import PlanError, StoreError
from orchestrator.planning import describe
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan
from orchestrator.planning.status import finished, statuses, to_run
from specs.experiment import Experiment
from specs.load import load
from strategies.registry import resolver

SPEC: dict[str, Any] = {
    "name": "tested",
    "data": {"kind": "sample"},
    "student": {"model": "vit_tiny_patch16_224", "args": {"patch_size": 4, "depth": 2}},
    "teacher": {"stage": "teacher"},
    "stages": [{"name": "teacher", "training": {"epochs": 2}}, {"name": "student"}],
    "matrix": {
        "axes": {
            "distill": {"strategies": {"none": [], "soft": [{"name": "response"}]}},
            "lr": {"path": "stages.student.training.optimizer.lr", "values": [0.001, 0.002]},
        }
    },
}


class Case:
    """A spec on disk with its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "store")

    def plan(self, **changes: Any) -> tuple[Plan, Experiment]:
        path = self.folder / "spec.yaml"
        data = {**SPEC, "storage": {"root": str(self.folder / "store")}, **changes}
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        document = load(path, resolver=resolver)
        return make_plan(document), document.experiment

    def finish(self, plan: Plan, *labels: str) -> None:
        """Commit the stages with these labels, as workers do."""
        for stage in plan.walk():
            if stage.label in labels:
                folder = self.folder / "scratch"
                folder.mkdir()
                (folder / "stage.json").write_text(stage.model_dump_json(), encoding="utf-8")
                self.store.commit(f"stages/{stage.digest}", folder)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


TAUGHT = "student[distill=soft,lr=0.001]"
ALONE = "student[distill=none,lr=0.001]"


def labels(plan: Plan, digests: Any) -> set[str]:
    return {plan.stages[d].label for d in digests}


def test_status_follows_the_store(case):
    plan, _ = case.plan()
    assert to_run(plan, finished(plan, case.store)) == set(plan.stages)
    case.finish(plan, "teacher", TAUGHT)
    done = finished(plan, case.store)
    assert labels(plan, done) == {"teacher", TAUGHT}
    assert to_run(plan, done) == set(plan.stages) - done


def test_a_missing_parent_of_finished_stages_is_not_needed(case):
    plan, _ = case.plan()
    case.finish(plan, *(s.label for s in plan.walk() if s.label != "teacher"))
    assert to_run(plan, finished(plan, case.store)) == set()
    teacher = next(d for d, s in plan.stages.items() if s.label == "teacher")
    assert statuses(plan, case.store)[teacher] == "not needed"
    # Any stage that still reads it brings it back.
    missing = next(d for d, s in plan.stages.items() if s.label == TAUGHT)
    assert to_run(plan, set(plan.stages) - {teacher, missing}) == {teacher, missing}


def test_the_tree_shows_each_stage_once_with_its_status(case):
    plan, experiment = case.plan()
    case.finish(plan, "teacher")
    text = describe.as_text(plan, experiment)
    for digest in plan.stages:
        assert text.count(digest[: describe.SHORT]) == 1
    teacher = next(line for line in text.splitlines() if " teacher " in line and "student" not in line)
    assert "done" in teacher
    taught = next(line for line in text.splitlines() if TAUGHT in line)
    assert "to run" in taught
    assert "response" in taught
    assert "taught by teacher" in taught
    # Two students with a teacher each, two without, and four measurements.
    assert "9 stages instead of 10: sharing saves 1." in text
    assert "1 done, 8 to run." in text


def test_dropped_combinations_are_listed_with_their_reasons(case):
    axes = {**SPEC["matrix"]["axes"], "patch": {"path": "student.args.patch_size", "values": [4, 5]}}
    plan, experiment = case.plan(matrix={"axes": axes, "on_conflict": "drop"})
    text = describe.as_text(plan, experiment)
    assert "Dropped, because their parts conflict (4):" in text
    assert "distill=none,lr=0.001,patch=5" in text
    assert "28 px cannot be cut into patches of 5 px" in text


def test_wide_trees_are_folded_but_json_is_complete(case):
    values = [i / 1000 for i in range(1, 60)]
    axis = {"path": "stages.student.training.optimizer.lr", "values": values}
    plan, experiment = case.plan(matrix={"axes": {"lr": axis}}, teacher=None, stages=[{"name": "student"}])
    assert "… and 19 more" in describe.as_text(plan, experiment)
    found = json.loads(describe.as_json(plan, experiment))
    assert len(found["stages"]) == len(found["status"]) == 2 * len(values)


def test_json_counts(case):
    plan, experiment = case.plan()
    case.finish(plan, "teacher")
    found = json.loads(describe.as_json(plan, experiment))
    assert found["summary"] == {
        "combinations": 4,
        "dropped": 0,
        "stages": 9,
        "stages_alone": 10,
        "saved": 1,
        "done": 1,
        "to_run": 8,
        "not_needed": 0,
    }
    soft = next(s for s in found["stages"].values() if s["label"] == TAUGHT)
    assert soft["strategies"][0]["name"] == "response"
    assert "kind" in soft["strategies"][0], "options of strategies are not lost"


def test_explain_names_what_differs(case):
    plan, experiment = case.plan()
    case.finish(plan, "teacher", TAUGHT)
    text = describe.explain(plan, experiment, "student[distill=soft,lr=0.002]")
    assert f"Nearest finished stage: {TAUGHT}" in text
    assert [line.strip() for line in text.splitlines()[1:]] == ["training.optimizer.lr: 0.001 → 0.002"]


def test_explain_prefers_the_same_stage_and_follows_parents(case):
    plan, experiment = case.plan()
    case.finish(plan, "teacher", TAUGHT)
    changed, experiment = case.plan(student={"model": "vit_tiny_patch16_224", "args": {"patch_size": 4, "depth": 3}})
    text = describe.explain(changed, experiment, TAUGHT)
    assert "student.model.args.depth: 2 → 3" in text
    assert "teacher.stage: " in text
    assert "It reads `teacher`, which is to run too" in text


def test_explain_finished_and_nothing_finished(case):
    plan, experiment = case.plan()
    assert "no training stage is finished yet" in describe.explain(plan, experiment, "teacher")
    case.finish(plan, "teacher")
    assert "is finished" in describe.explain(plan, experiment, "teacher")
    assert "no measurement is finished yet" in describe.explain(plan, experiment, f"measure:{ALONE}")


def test_explain_takes_digests_and_names_the_nearest(case):
    plan, experiment = case.plan()
    digest = next(d for d, s in plan.stages.items() if s.label == ALONE)
    assert ALONE in describe.explain(plan, experiment, digest[:12])
    with pytest.raises(PlanError, match="Did you mean `teacher`"):
        describe.explain(plan, experiment, "teachr")
    with pytest.raises(PlanError, match="`student` means 4 stages"):
        describe.explain(plan, experiment, "student")


def test_explain_names_a_damaged_stage(case):
    plan, experiment = case.plan()
    case.finish(plan, "teacher")
    (folder,) = (case.store.root / "stages").iterdir()
    (folder / "stage.json").write_text("{")
    with pytest.raises(StoreError, match=r"damaged.*Delete the folder"):
        describe.explain(plan, experiment, TAUGHT)


def test_seeds_that_repeat_nothing_are_refused(case):
    """Stages with seeds of their own would show a spread of 0 that nobody measured."""
    matrix = {"axes": {"seed": {"seeds": [0, 1]}}}
    stages = [{"name": "teacher", "seed": 3}, {"name": "student", "seed": 4}]
    with pytest.raises(PlanError, match="seeds 0, 1 of `default` are one and the same run"):
        case.plan(matrix=matrix, stages=stages)
    plan, _ = case.plan(matrix=matrix, stages=[stages[0], {"name": "student"}])
    assert len(plan.combinations) == 2


def test_a_baseline_that_timm_lacks_is_refused(case):
    with pytest.raises(PlanError, match=r"`measurement.baseline`: timm .* has no model `vit_tiny_patch17_224`"):
        case.plan(measurement={"baseline": {"model": "vit_tiny_patch17_224"}})
