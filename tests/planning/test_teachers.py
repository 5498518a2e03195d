"""Who teaches whom."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from tests.planning.specs import TINY, axes, by_label, result, spec


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
