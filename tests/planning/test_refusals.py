"""What cannot be planned, and what the matrix may drop instead."""

from __future__ import annotations

import pytest

from orchestrator.errors import PlanError
from tests.planning.specs import TINY, axes

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


def test_a_network_that_loses_patches_at_random_cannot_be_read_as_a_picture(planned):
    dropping = {"model": "vit_tiny_patch16_224", "args": {**TINY, "patch_drop_rate": 0.3}}
    for name, options in (("conditional_position", {}), ("skip_attention", {}), ("window_attention", {"window": 3})):
        stages = [{"name": "student", "strategies": [{"name": name, **options}]}]
        with pytest.raises(PlanError, match=rf"`{name}` needs .*`patch_drop_rate` is 0.3; allowed: 0.*Way out"):
            planned(teacher=None, stages=stages, student=dropping)
