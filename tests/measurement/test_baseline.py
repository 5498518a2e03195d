from __future__ import annotations

import pytest

from orchestrator.measurement.baseline import at_input_of
from specs.model import ModelSpec
from strategies.catalog import facts_of

TINY = ModelSpec(model="vit_tiny_patch16_224")


def vit(image: int, patch: int) -> ModelSpec:
    return ModelSpec(
        model="vit_tiny_patch16_224",
        args={"img_size": image, "patch_size": patch, "in_chans": 1, "num_classes": 7, "depth": 2},
    )


@pytest.mark.parametrize(
    ("image", "patch", "expected"),
    [(28, 4, 4), (64, 8, 8), (224, 32, None), (224, 16, None), (384, 32, None)],
)
def test_takes_the_students_patches_only_below_its_own_size(image: int, patch: int, expected: int | None) -> None:
    spec = at_input_of(facts_of(vit(image, patch)), TINY, image)
    assert spec.args.get("patch_size") == expected
    assert (spec.args["img_size"], spec.args["in_chans"], spec.args["num_classes"]) == (image, 1, 7)
    facts = facts_of(spec)
    assert facts.grid == image // (expected or 16)


def test_its_own_arguments_win() -> None:
    spec = at_input_of(facts_of(vit(28, 4)), ModelSpec(model=TINY.model, args={"patch_size": 7, "depth": 3}), 28)
    assert spec.args["patch_size"] == 7
    assert spec.args["depth"] == 3


def test_beside_a_student_without_patches_it_keeps_its_grid() -> None:
    student = facts_of(ModelSpec(model="resnet18", args={"in_chans": 3, "num_classes": 10}))
    spec = at_input_of(student, TINY, 56)
    assert facts_of(spec).grid == 14
