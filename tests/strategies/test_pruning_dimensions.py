"""Width of the tokens and number of blocks, besides heads and MLP channels; in one step and in several."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from specs.model import ModelSpec
from strategies.carry import axes_of
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import build_model, compose
from strategies.cost import blocks_of, network_macs
from strategies.facts import Facts
from strategies.shapes import WHOLE
from strategies.surgery import apply
from tests.strategies.checks import DEIT, counted_macs
from tests.strategies.pruned import prune, uneven
from tests.strategies.toys import strategy


@pytest.fixture
def model(toy_vit: ModelSpec) -> nn.Module:
    return uneven(toy_vit)


@pytest.fixture
def facts(toy_vit: ModelSpec) -> Facts:
    return Facts(facts_of(toy_vit))


ALL = ("heads", "mlp", "embed", "depth")


@pytest.mark.parametrize("what", [ALL, ("head_width", "mlp", "embed"), ("depth",), ("embed",)])
@pytest.mark.parametrize("name", DEIT)
def test_counted_macs_are_the_closed_form_at_224_px(name, what) -> None:
    spec = ModelSpec(model=name)
    facts = Facts(facts_of(spec))
    for ratio in (0.25, 0.5):
        pruning = StructuredPruning(StructuredPruningConfig(ratio=ratio, what=what))
        after = pruning.leaves(facts)
        network = compose(build_model(spec, after.shapes, device="meta"), [], after).eval()
        closed = network_macs(after.student, blocks_of(after.student, after.shapes))
        assert counted_macs(network) == closed
        assert closed < network_macs(facts.student, blocks_of(facts.student, WHOLE))


def test_halving_every_dimension_of_vit_base_is_vit_small() -> None:
    base, small = ModelSpec(model="vit_base_patch16_224"), ModelSpec(model="vit_small_patch16_224")
    with torch.device("cpu"):
        model = build_model(base)
    facts = Facts(facts_of(base))
    student = prune(model, facts, ratio=0.5, what=("heads", "mlp", "embed"), scope="per_block")
    there = {name: tensor.shape for name, tensor in student.model.state_dict().items()}
    assert there == {name: tensor.shape for name, tensor in build_model(small, device="meta").state_dict().items()}
    after = facts.further(student.shapes).student
    assert (after.embed_dim, after.depth, after.head_dim) == (384, 12, 64)
    assert (
        student.shapes
        == StructuredPruning(StructuredPruningConfig(ratio=0.5, what=("heads", "mlp", "embed"))).leaves(facts).shapes
    )


@pytest.mark.parametrize("scope", ["per_block", "isomorphic", "global"])
@pytest.mark.parametrize("what", [ALL, ("embed",), ("depth", "mlp"), ("head_width", "embed")])
def test_a_target_is_met_with_width_and_depth_as_planned(model, facts, what, scope) -> None:
    pruning = StructuredPruning(StructuredPruningConfig(target_macs=5e6, what=what, scope=scope))
    planned = pruning.leaves(facts)
    student = compose(model, [pruning], facts)
    left = facts.further(student.shapes)
    assert left.student == planned.student
    cost = network_macs(left.student, blocks_of(left.student, left.shapes))
    assert 3.5e6 < cost <= 5e6
    assert student(torch.randn(2, 3, 64, 64)).logits.shape == (2, 10)


def test_another_stage_with_the_same_target_removes_nothing(model, facts) -> None:
    pruning = StructuredPruning(StructuredPruningConfig(target_macs=5e6, what=ALL))
    student = compose(model, [pruning], facts)
    left = facts.further(student.shapes)
    assert pruning.leaves(left) == left
    again = compose(student.model, [pruning], left)
    assert again.shapes == left.shapes


def test_in_steps_it_ends_where_it_would_at_once(model, facts) -> None:
    for options in ({"ratio": 0.5}, {"target_macs": 4e6}):
        gradual = StructuredPruning(StructuredPruningConfig(**options, what=ALL, steps=3, scope="per_block"))
        student = compose(copy.deepcopy(model), [gradual], facts)
        assert gradual.moments() == (0, 1, 2)
        depths = []
        for moment in range(3):
            found = gradual.cut(student, facts, moment, None)
            apply(student.model, axes_of(student), found)
            student.shapes = found.shapes
            depths.append(len(student.model.blocks))
        at_once = gradual.leaves(facts)
        assert depths == sorted(depths, reverse=True)
        assert facts.further(student.shapes).student == at_once.student
        assert (
            student.shapes.blocks
            == prune(copy.deepcopy(model), facts, **options, what=ALL, scope="per_block").shapes.blocks
        )


def test_others_are_planned_for_what_is_left(facts) -> None:
    pruning = strategy("structured_pruning", {"ratio": 0.5, "what": ["depth"]})
    gradual = strategy("structured_pruning", {"ratio": 0.5, "what": ["depth"], "steps": 2})
    early, late = (strategy("early_exit", {"blocks": [b]}) for b in (0, 2))
    assert conflicts([pruning, early], facts) == []
    assert "early_exit.blocks: there is no block 2" in conflicts([pruning, late], facts)[0]
    merging = strategy("token_merging", {"r": [8, 8]})  # one number for each of the two blocks that are left
    assert conflicts([pruning, merging], facts) == []
    assert conflicts([gradual, merging], facts)  # while it is pruned, there are more blocks
