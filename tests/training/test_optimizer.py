"""timm's optimisers and schedules with our settings, against the formulas."""

from __future__ import annotations

import math

import pytest

from orchestrator.training.optimizer import make_optimizer, make_schedule
from specs.training import OptimizerSpec, TrainingSpec
from strategies import registry
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts


@pytest.fixture
def student(tiny):
    exits = registry.resolver("early_exit").model_validate({"name": "early_exit", "blocks": (1,)})
    return compose(build_model(tiny), [registry.build(exits)], Facts(facts_of(tiny)))


def groups_of(student, spec):
    names = {id(p): n for n, p in student.named_parameters()}
    return {names[id(p)]: group for group in make_optimizer(student, spec).param_groups for p in group["params"]}


def test_what_decays(student):
    groups = groups_of(student, OptimizerSpec(weight_decay=0.1))
    assert groups.keys() == dict(student.named_parameters()).keys()
    for name, group in groups.items():
        free = name.endswith(("bias", "pos_embed", "cls_token")) or "norm" in name
        assert group["weight_decay"] == (0.0 if free else 0.1), name


def test_layer_decay(student):
    """Depth 4: embedding is layer 0, block i layer i + 1, the head (and the last norm) layer 5."""
    groups = groups_of(student, OptimizerSpec(layer_decay=0.5))
    assert groups["model.head.weight"]["lr_scale"] == 1
    assert groups["model.blocks.3.mlp.fc1.weight"]["lr_scale"] == 0.5
    assert groups["model.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.5**4
    assert groups["model.patch_embed.proj.weight"]["lr_scale"] == 0.5**5
    assert all(g.get("lr_scale", 1.0) == 1.0 for n, g in groups.items() if n.startswith("extras."))


def test_options_reach_the_optimizer(student):
    adam = make_optimizer(student, OptimizerSpec(betas=[0.8, 0.95], eps=1e-6)).param_groups[0]
    assert (adam["betas"], adam["eps"]) == ((0.8, 0.95), 1e-6)
    sgd = make_optimizer(student, OptimizerSpec(name="sgd", momentum=0.7)).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.7, True)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_the_learning_rate_of_every_step(student, name):
    schedule = {"name": name, "warmup_epochs": 0.5, "warmup_lr": 1e-5, "min_lr": 1e-4}
    training = TrainingSpec.model_validate({"epochs": 2, "optimizer": {"lr": 1e-3}, "schedule": schedule})
    optimizer = make_optimizer(student, training.optimizer)
    scheduler = make_schedule(optimizer, training, steps_per_epoch=10)
    for step in [7, *range(20)]:  # no matter what was set before
        scheduler.step_update(step)
        done = step / 20
        after = {
            "cosine": 1e-4 + 9e-4 * (1 + math.cos(math.pi * done)) / 2,
            "linear": 1e-4 + 9e-4 * (1 - done),
            "constant": 1e-3,
        }[name]
        expected = 1e-5 + (1e-3 - 1e-5) * step / 5 if step < 5 else after
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), step
