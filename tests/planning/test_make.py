"""From spec files to plans: sharing, digests, teachers, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import PlanError
from orchestrator.planning.digest import digest_of
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import MeasureStage, Plan, TrainStage
from specs.load import load
from specs.strategy import RESOLVER_KEY
from strategies import registry
from strategies.dynamic.token_merging import TokenMerging

TINY = {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}
MERGING = {"strategies": {"none": [], "r2": [{"name": "token_merging", "r": 2}]}}
DISTILL = {"strategies": {"none": [], "soft": [{"name": "response"}]}}


def spec(**changes: Any) -> dict[str, Any]:
    """A spec with a teacher stage and a student stage."""
    return {
        "name": "tested",
        "data": {"kind": "sample"},
        "student": {"model": "vit_tiny_patch16_224", "args": TINY},
        "teacher": {"stage": "teacher"},
        "stages": [
            {
                "name": "teacher",
                "model": {"model": "vit_tiny_patch16_224", "args": {**TINY, "embed_dim": 96}},
                "seed": 0,
            },
            {"name": "student"},
        ],
        **changes,
    }


def axes(**named: Any) -> dict[str, Any]:
    return {"axes": named}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Write a spec to a file, load it, plan it."""

    def plan(**changes: Any) -> Plan:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec(**changes), sort_keys=False), encoding="utf-8")
        return make_plan(load(path, resolver=registry.resolver))

    return plan


def result(plan: Plan, position: int = 0) -> TrainStage:
    stage = plan.stages[plan.combinations[position].result]
    assert isinstance(stage, TrainStage)
    return stage


def by_label(plan: Plan, label: str) -> TrainStage:
    (stage,) = [s for s in plan.walk() if s.label == label]
    assert isinstance(stage, TrainStage)
    return stage


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


# What the digest is taken over -----------------------------------------------------------------------------------

UNCHANGED: list[dict[str, Any]] = [
    {"resources": {"workers": 4, "max_retries": 0, "lanes": 2}},
    {"name": "renamed", "description": "for people"},
    {"storage": {"root": "/elsewhere"}},
    {"data": {"kind": "sample", "loader_workers": 3}},
    {"stages": [{"name": "renamed", "training": {"checkpoint_every_steps": 5}}], "teacher": None},
    {"student": {"model": "vit_tiny_patch16_224", "args": {**TINY, "num_classes": 10, "img_size": 28}}},
]
CHANGED: list[dict[str, Any]] = [
    {"seed": 1},
    {"data": {"kind": "sample", "limit_train": 100}},
    {"data": {"kind": "sample", "image_size": 32}},
    {"student": {"model": "vit_tiny_patch16_224", "args": {**TINY, "depth": 5}}},
    {"stages": [{"name": "student", "training": {"epochs": 2}}], "teacher": None},
    {"stages": [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}], "teacher": None},
    {"resources": {"gpus_per_worker": 1}},
]


@pytest.mark.parametrize("change", UNCHANGED, ids=lambda c: "-".join(c))
def test_what_does_not_change_the_numbers_does_not_change_the_digest(planned, change):
    assert result(planned(**change)).digest == result(planned()).digest


def test_published_weights_are_another_start(planned):
    student = {"model": "vit_tiny_patch16_224", "args": {"patch_size": 7}}
    published, random = (result(planned(student={**student, "pretrained": p})).digest for p in (True, False))
    assert published != random


def test_published_weights_fit_one_architecture(planned):
    student = {"model": "vit_tiny_patch16_224", "args": {"patch_size": 7, "depth": 4, "embed_dim": 48}}
    with pytest.raises(PlanError, match=r"`embed_dim` 48 instead of 192, `depth` 4 instead of 12.*`pretrained: false`"):
        planned(student={**student, "pretrained": True})
    assert planned(student=student).combinations


@pytest.mark.parametrize("change", CHANGED, ids=lambda c: "-".join(c))
def test_what_changes_the_numbers_changes_the_digest(planned, change):
    assert result(planned(**change)).digest != result(planned()).digest


def test_the_version_of_a_strategy_is_in_the_digest(planned, monkeypatch):
    stages = [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}]
    before = result(planned(stages=stages, teacher=None))
    monkeypatch.setattr(TokenMerging, "version", TokenMerging.version + 1)
    after = result(planned(stages=stages, teacher=None))
    assert before.digest != after.digest
    assert before.strategies == after.strategies


def test_measuring_anew_does_not_train_anew(planned):
    before, after = planned(), planned(measurement={"batch_sizes": [1]})
    assert before.combinations[0].result == after.combinations[0].result
    assert before.combinations[0].measured_by != after.combinations[0].measured_by


def test_open_measurement_conditions_are_filled_in(planned):
    plan = planned(resources={"cpus_per_worker": 3})
    measure = plan.stages[plan.combinations[0].measured_by]
    assert isinstance(measure, MeasureStage)
    assert (measure.measurement.device, measure.measurement.threads, measure.input_size) == ("cpu", 3, 28)


def test_digests_are_those_of_their_parts(planned):
    plan = planned(matrix=axes(distill=DISTILL))
    assert {d: digest_of(s.digest_parts) for d, s in plan.stages.items()} == {d: d for d in plan.stages}


# Teachers ---------------------------------------------------------------------------------------------------------


def test_the_default_teacher_trains_alone(planned):
    stage = {"name": "teacher", "strategies": [{"name": "token_merging", "r": 1}]}
    plan = planned(stages=[stage, {"name": "student", "strategies": [{"name": "response"}]}])
    assert by_label(plan, "teacher").teacher is None


def test_a_strategy_that_needs_a_teacher_says_so(planned):
    with pytest.raises(
        PlanError, match=r"stage `student`: `response` needs the teacher's logits.*Way out: set `teacher`"
    ):
        planned(teacher=None, stages=[{"name": "student", "strategies": [{"name": "response"}]}])


def test_a_published_teacher_keeps_its_classes_and_is_refused_for_others(planned):
    teacher = {"model": {"model": "deit_small_patch16_224", "pretrained": True}}
    with pytest.raises(PlanError, match=r"knows 1000 classes and the student knows 10\b"):
        planned(
            data={"kind": "sample", "image_size": 32},
            teacher=teacher,
            stages=[{"name": "student", "strategies": [{"name": "response"}]}],
        )


def test_a_teacher_that_does_not_fit_is_called_the_teacher(planned):
    stages = [{"name": "student", "strategies": [{"name": "response"}]}]
    with pytest.raises(PlanError, match=r"stage `student`: its teacher: .*28 px.*Way out"):
        planned(teacher={"model": {"model": "deit_small_patch16_224"}}, stages=stages)
    with pytest.raises(PlanError, match=r"its teacher: .*Nearest: `deit_small_patch16_224`"):
        planned(teacher={"model": {"model": "deit_smal_patch16_224"}}, stages=stages)


RESNET = {"model": "resnet10t", "args": {"num_classes": 10}}
SEVERAL = {"stage": "teacher", "also": [{"model": RESNET, "image_size": 56}, {"model": RESNET}]}
TOKENS = {"strategies": {"none": [], "soft": [{"name": "response"}], "both": [{"name": "cross_inductive_bias"}]}}


def test_only_who_learns_from_several_teachers_has_them(planned):
    plan = planned(teacher=SEVERAL, matrix=axes(distill=TOKENS))
    teacher = by_label(plan, "teacher")
    assert (teacher.teacher, teacher.other_teachers) == (None, ())
    none, soft, both = (by_label(plan, f"student[distill={name}]") for name in ("none", "soft", "both"))
    assert (none.teacher, none.other_teachers) == (None, ())
    assert soft.teacher == both.teacher
    assert soft.teacher is not None
    assert soft.teacher.stage == teacher.digest
    assert soft.other_teachers == ()
    assert [source.image_size for source in both.other_teachers] == [56, None]
    assert [source.model.model for source in both.other_teachers] == ["resnet10t"] * 2
    assert both.parents == (teacher.digest,)


def test_a_further_stage_teaches_and_is_a_parent(planned):
    other = {"name": "other", "model": {"model": "vit_tiny_patch16_224", "args": {**TINY, "embed_dim": 24}}}
    stages = [spec()["stages"][0], other, {"name": "student", "strategies": [{"name": "cross_inductive_bias"}]}]
    plan = planned(teacher={"stage": "teacher", "also": [{"stage": "other"}]}, stages=stages)
    first, second, student = (by_label(plan, name) for name in ("teacher", "other", "student"))
    assert student.parents == (first.digest, second.digest)
    assert [source.stage for source in student.teachers] == [first.digest, second.digest]
    # The first teacher trains alone although another is an earlier stage of the experiment too.
    assert second.teachers == ()


def test_the_teachers_and_their_order_are_in_the_digest(planned):
    def student(teacher: dict[str, Any], name: str = "both") -> str:
        return by_label(planned(teacher=teacher, matrix=axes(distill=TOKENS)), f"student[distill={name}]").digest

    first, second = SEVERAL["also"]
    variants = [SEVERAL, {**SEVERAL, "also": [first]}, {**SEVERAL, "also": [second, first]}, {"stage": "teacher"}]
    assert len({student(teacher) for teacher in variants}) == 4
    # Who learns from the first alone does not ask who else there is.
    assert len({student(teacher, "soft") for teacher in variants}) == 1


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_teacher_may_see_other_sizes(planned, model):
    args = {"num_classes": 10} if model == "resnet10t" else {**TINY, "patch_size": 7}
    learns = axes(distill={"strategies": {"soft": [{"name": "response"}]}})

    def source(image_size: int | None):
        teacher = {"model": {"model": model, "args": args}, "image_size": image_size}
        stage = result(planned(teacher=teacher, stages=[{"name": "student"}], matrix=learns))
        assert stage.teacher is not None
        return stage.teacher, stage.digest

    (own, plain), (larger, other) = source(None), source(56)
    assert (own.image_size, larger.image_size) == (None, 56)
    assert source(28)[1] == plain, "28 px are the data's own"
    assert plain != other
    if model != "resnet10t":
        assert larger.model is not None
        assert larger.model.args["img_size"] == 56


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"stage": "teacher", "image_size": 56}, r"takes images of 28 px, but `teacher.image_size` is 56"),
        (
            {"model": {"model": "vit_tiny_patch16_224", "args": {**TINY, "img_size": 32}}, "image_size": 56},
            r"is given `img_size: 32`, but `teacher.image_size` is 56",
        ),
        (
            {"stage": "teacher", "also": [{"model": {"model": "resnet10t", "args": {"num_classes": 7}}}]},
            r"teacher 2's logits.* 7 classes",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_refused(planned, teacher, said):
    with pytest.raises(PlanError, match=said) as caught:
        planned(teacher=teacher, matrix=axes(distill={"strategies": {"t": [{"name": "cross_inductive_bias"}]}}))
    assert "Way out" in str(caught.value)


def test_a_teacher_from_timm_is_completed_too(planned):
    teacher = {"model": {"model": "deit_small_patch16_224", "args": {"patch_size": 4}}}
    stage = result(planned(teacher=teacher, stages=[{"name": "student", "strategies": [{"name": "response"}]}]))
    assert stage.teacher is not None
    assert stage.teacher.model is not None
    assert stage.teacher.model.args == {"patch_size": 4, "num_classes": 10, "in_chans": 1, "img_size": 28}


# Refusals ---------------------------------------------------------------------------------------------------------

CLASH = {"strategies": {"one": [], "two": [{"name": "token_merging", "r": 3}]}}


def test_all_conflicts_are_reported_at_once(planned):
    stages = [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}]
    blocks = {"strategies": {"far": [{"name": "early_exit", "blocks": [77]}], "none": []}}
    with pytest.raises(PlanError) as error:
        planned(teacher=None, stages=stages, matrix=axes(clash=CLASH, exits=blocks))
    assert "`token_merging` is listed 2 times" in str(error.value)
    assert "77" in str(error.value)
    assert "clash=two,exits=none" in str(error.value)
    assert "on_conflict: drop" in str(error.value)
    assert "3 combinations cannot be planned" in str(error.value)


def test_conflicting_combinations_can_be_dropped(planned):
    stages = [{"name": "student", "strategies": [{"name": "token_merging", "r": 2}]}]
    plan = planned(
        teacher=None,
        stages=stages,
        matrix={**axes(clash=CLASH, seed={"seeds": [0, 1]}), "on_conflict": "drop"},
    )
    assert [(c.name, c.seed) for c in plan.combinations] == [("clash=one", 0), ("clash=one", 1)]
    (dropped,) = plan.dropped
    assert dropped.name == "clash=two"
    assert "listed 2 times" in dropped.reasons[0]


def test_dropping_every_combination_is_refused(planned):
    twice = [{"name": "token_merging", "r": 2}, {"name": "token_merging", "r": 3}]
    with pytest.raises(PlanError, match="No combination is left"):
        planned(teacher=None, stages=[{"name": "s", "strategies": twice}], matrix={"on_conflict": "drop"})


def test_a_misspelt_model_is_never_dropped(planned):
    models = {"path": "student.model", "values": ["vit_tiny_patch16_224", "vit_tinny_patch16_224"]}
    with pytest.raises(PlanError, match="Nearest: `vit_tiny_patch16_224`"):
        planned(matrix={**axes(model=models), "on_conflict": "drop"})


def test_sizes_that_do_not_fit_can_be_dropped(planned):
    sizes = {"path": "student.args.patch_size", "values": [4, 5, 7]}
    plan = planned(matrix={**axes(patch=sizes), "on_conflict": "drop"})
    assert [c.name for c in plan.combinations] == ["patch=4", "patch=7"]
    assert "patches of 5 px" in plan.dropped[0].reasons[0]


def test_values_of_two_axes_that_do_not_fit_each_other(planned):
    matrix = axes(
        epochs={"path": "stages.student.training.epochs", "values": [1, 4]},
        warmup={"path": "stages.student.training.schedule.warmup_epochs", "values": [0, 2]},
    )
    plan = planned(stages=[{"name": "student"}], teacher=None, matrix={**matrix, "on_conflict": "drop"})
    assert [c.name for c in plan.combinations] == ["epochs=1,warmup=0", "epochs=4,warmup=0", "epochs=4,warmup=2"]
    assert "warm-up" in plan.dropped[0].reasons[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [({"num_classes": 7}, "10 classes"), ({"in_chans": 3}, "1 values"), ({"img_size": 32}, "`data.image_size` is 28")],
)
def test_arguments_against_the_data_are_refused(planned, args, said):
    with pytest.raises(PlanError, match="Way out: leave") as error:
        planned(student={"model": "vit_tiny_patch16_224", "args": {**TINY, **args}})
    assert said in str(error.value)


# The plan as a whole ----------------------------------------------------------------------------------------------


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
