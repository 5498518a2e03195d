"""From spec files to plans: stages, their order, and what is shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import PlanError
from orchestrator.planning.digest import digest_of
from orchestrator.planning.plan import MeasureStage, Plan, TrainStage
from specs.strategy import RESOLVER_KEY
from strategies import registry
from tests.planning.specs import DISTILL, MERGING, TINY, axes, by_label, result


def test_without_a_matrix_there_is_one_combination(planned):
    plan = planned()
    (only,) = plan.combinations
    assert (only.name, only.labels, only.seed) == ("default", {}, 0)
    # Nothing needs the teacher, so it is not trained.
    assert [s.label for s in plan.walk()] == ["student", "measure:student"]
    assert only.stages == tuple(plan.stages)


def test_models_are_complete(planned):
    model = result(planned()).student.model
    assert model is not None
    assert model.args == {**TINY, "num_classes": 10, "in_chans": 1, "img_size": 28}


def test_a_shared_teacher_is_one_stage_and_comes_first(planned):
    plan = planned(matrix=axes(merging=MERGING, distill=DISTILL, seed={"seeds": [0, 1, 2]}))
    assert len(plan.combinations) == 12
    assert sum(s.label == "teacher" for s in plan.walk()) == 1
    # Twelve students with a measurement each, and the teacher once instead of six times.
    assert len(plan.stages) == 25
    assert plan.stages_alone() == 30
    taught = [c for c in plan.combinations if c.labels["distill"] == "soft"]
    for combination in taught:
        teacher, student, measure = (plan.stages[d] for d in combination.stages)
        assert teacher.label == "teacher"
        assert isinstance(student, TrainStage)
        assert student.teacher is not None
        assert student.teacher.stage == teacher.digest
        assert student.parents == (teacher.digest,)
        assert isinstance(measure, MeasureStage)
        assert measure.parents == (student.digest,)
    assert {c.seed for c in taught} == {0, 1, 2}
    assert {c.name for c in taught} == {"merging=none,distill=soft", "merging=r2,distill=soft"}


def test_labels_name_the_axes_that_matter(planned):
    plan = planned(matrix=axes(merging=MERGING, distill=DISTILL, seed={"seeds": [4]}))
    labels = {s.label for s in plan.walk()}
    assert "teacher" in labels
    assert "student[merging=r2,distill=soft,seed=4]" in labels
    assert "measure:student[merging=r2,distill=soft,seed=4]" in labels


def test_an_axis_on_an_early_stage_reaches_those_that_go_on_from_it(planned):
    stages = [{"name": "pre"}, {"name": "other"}, {"name": "post", "init": {"stage": "pre"}}]
    plan = planned(
        teacher=None,
        stages=stages,
        matrix=axes(lr={"path": "stages.pre.training.optimizer.lr", "values": [0.1, 0.2]}),
    )
    assert {s.label for s in plan.walk() if isinstance(s, TrainStage)} == {
        "pre[lr=0.1]", "pre[lr=0.2]", "post[lr=0.1]", "post[lr=0.2]",
    }  # fmt: skip
    post = by_label(plan, "post[lr=0.2]")
    assert post.student.stage == by_label(plan, "pre[lr=0.2]").digest == post.parents[0]
    assert by_label(plan, "pre[lr=0.2]").training.optimizer.lr == 0.2


def test_exclude_and_include(planned):
    matrix = axes(merging=MERGING, distill=DISTILL, seed={"seeds": [0, 1]})
    matrix["exclude"] = [{"merging": "r2"}, {"distill": "none", "seed": 1}]
    matrix["include"] = [{"merging": "r2", "distill": "soft"}, {"merging": "none", "distill": "soft"}]
    plan = planned(matrix=matrix)
    assert [(c.name, c.seed) for c in plan.combinations] == [
        ("merging=none,distill=none", 0),
        ("merging=none,distill=soft", 0),
        ("merging=none,distill=soft", 1),
        ("merging=r2,distill=soft", 0),
        ("merging=r2,distill=soft", 1),
    ]


def test_excluding_everything_is_refused(planned):
    with pytest.raises(PlanError, match="leaves no combination"):
        planned(matrix={**axes(merging=MERGING), "exclude": [{"merging": "none"}, {"merging": "r2"}]})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lrs=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    stage=st.sampled_from(["teacher", "middle", "student"]),
    distill=st.sampled_from(["teacher", "middle", "student"]),
    pinned=st.booleans(),
)
def test_stages_are_shared_and_ordered(planned, lrs, seeds, stage, distill, pinned):
    stages: list[dict[str, Any]] = [
        {"name": "teacher", **({"seed": 9} if pinned else {})},
        {"name": "middle", "init": {"stage": "teacher"}},
        {"name": "student"},
    ]
    plan = planned(
        stages=stages,
        teacher={"stage": "middle"},
        matrix={
            **axes(
                lr={"path": f"stages.{stage}.training.optimizer.lr", "values": lrs},
                distill={**DISTILL, "stage": distill},
                seed={"seeds": seeds},
            ),
            "on_conflict": "drop",
        },
    )
    assert len(plan.combinations) + len(plan.dropped) * len(seeds) == 2 * len(lrs) * len(seeds)
    assert len(plan.stages) == len({digest_of(s.digest_parts) for s in plan.walk()})
    assert set(plan.stages) == {d for c in plan.combinations for d in c.stages}
    seen: set[str] = set()
    for digest, one in plan.stages.items():
        assert digest == one.digest
        assert set(one.parents) <= seen
        seen.add(digest)
    for combination in plan.combinations:
        for position, digest in enumerate(combination.stages):
            assert set(plan.stages[digest].parents) <= set(combination.stages[:position])
    assert len({s.label for s in plan.walk()}) == len(plan.stages)


def test_a_plan_survives_json(planned):
    plan = planned(matrix=axes(merging=MERGING, distill=DISTILL))
    again = Plan.model_validate_json(plan.model_dump_json(), context={RESOLVER_KEY: registry.resolver})
    assert again == plan
    assert list(again.stages) == list(plan.stages)


def test_planning_loads_no_heavy_package(planned, tmp_path):
    planned(matrix=axes(merging=MERGING, distill=DISTILL))
    code = (
        "import sys; from pathlib import Path; from specs.load import load; from strategies.registry import resolver;"
        "from orchestrator.planning import describe; from orchestrator.planning.make import make_plan;"
        f"document = load(Path({str(tmp_path / 'spec.yaml')!r}), resolver=resolver); plan = make_plan(document);"
        "describe.as_text(plan, document.experiment);"
        "print({'torch', 'torchvision', 'timm', 'ray', 'mlflow'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_workers_find_images_wherever_they_run(planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"kind": "torchvision", "name": "CIFAR10", "root": "images", "image_size": 28}
    for matrix in ({}, axes(images={"path": "data.limit_train", "values": [100, 200]})):
        plan = planned(data=data, matrix=matrix)
        assert {stage.data.root for stage in plan.stages.values()} == {str(tmp_path / "images")}
