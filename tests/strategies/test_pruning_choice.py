"""Who is important, and who stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.component.group_importance import along, block_scores, elements, head_scores
from strategies.component.pruning_choice import Candidates, choose
from strategies.component.pruning_goal import rounded_width
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import compose
from strategies.facts import Facts
from strategies.gradients import Gradients
from strategies.shapes import WHOLE
from strategies.surgery import EMBED, Axis, vit_axes
from tests.strategies.pruned import DEPTH, D, E, H, uneven


@pytest.fixture
def model(toy_vit: ModelSpec) -> nn.Module:
    return uneven(toy_vit)


@pytest.fixture
def facts(toy_vit: ModelSpec) -> Facts:
    return Facts(facts_of(toy_vit))


def heads_and_channels(generator, depth, heads, channels, *, multiple=8, what=("heads", "mlp"), sizes=(64, 8)):
    """Candidates of a network, block by block: heads, then channels."""
    found = []
    for _ in range(depth):
        if "heads" in what:
            found.append(Candidates("heads", torch.rand(heads, generator=generator), sizes[0]))
        if "mlp" in what:
            found.append(Candidates("mlp", torch.rand(channels, generator=generator), sizes[1], multiple))
    return found


def test_halving_the_heads_and_channels_of_vit_base() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = heads_and_channels(generator, 12, 12, 3072, sizes=(4 * 768 * 64, 2 * 768))
    assert [len(k) for k in choose(candidates, "per_block", 0.5)] == [6, 1536] * 12
    kept = [len(k) for k in choose(candidates, "isomorphic", 0.5)]
    assert sum(kept[0::2]) == 72
    assert sum(kept[1::2]) == pytest.approx(12 * 1536, abs=12 * 4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    ratios=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    scope=st.sampled_from(["per_block", "isomorphic", "global"]),
    round_to=st.sampled_from([1, 4, 8, 50]),
    what=st.sampled_from([("heads",), ("mlp",), ("heads", "mlp")]),
)
def test_choices_are_nested_and_leave_every_block_alive(seed, ratios, scope, round_to, what) -> None:
    candidates = heads_and_channels(torch.Generator().manual_seed(seed), 3, 4, 30, multiple=round_to, what=what)
    more, less = (choose(candidates, scope, r) for r in sorted(ratios))
    for candidate, stays, fewer in zip(candidates, more, less, strict=True):
        assert set(fewer.tolist()) <= set(stays.tolist())
        assert len(fewer) >= min(candidate.multiple, candidate.number)
        assert len(fewer) % candidate.multiple == 0 or len(fewer) == candidate.number


def test_ratios_are_of_what_there_was_at_the_start() -> None:
    """Half in two steps is half at once, when importance stays."""
    whole = heads_and_channels(torch.Generator().manual_seed(1), 3, 8, 64)
    for scope in ("per_block", "isomorphic", "global"):
        first = choose(whole, scope, 0.25)
        rest = [replace(c, importance=c.importance[k], start=c.number) for c, k in zip(whole, first, strict=True)]
        second = [k[again] for k, again in zip(first, choose(rest, scope, 0.5), strict=True)]
        assert [len(k) for k in second] == [len(k) for k in choose(whole, scope, 0.5)], scope


@pytest.mark.parametrize(
    ("width", "multiple", "limit", "expected"),
    [
        (115, 8, 192, 112),
        (116, 8, 192, 120),
        (3, 8, 192, 8),
        (192, 8, 192, 192),
        (29, 8, 30, 30),
        (30, 8, 30, 30),
        (5, 50, 30, 30),
    ],
)
def test_rounding(width, multiple, limit, expected) -> None:
    assert rounded_width(width, multiple, limit) == expected


def gradients_of(model: nn.Module) -> Gradients:
    generator = torch.Generator().manual_seed(7)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    mean = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Gradients(mean, {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()})


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_importance_is_summed_over_everything_that_leaves(model, importance) -> None:
    gradients = gradients_of(model)
    parts = elements(dict(model.named_parameters()), importance, gradients)
    axes = vit_axes(model)
    worth = {}
    for name, parameter in model.named_parameters():
        w, g, s = (t.detach().double().numpy() for t in (parameter, gradients.mean[name], gradients.square[name]))
        worth[name] = (w * g) ** 2 if importance == "taylor" else w**2 * s / 2
    heads = np.zeros(H)
    for h in range(H):
        for part in range(3):
            rows = slice(part * D + h * E, part * D + (h + 1) * E)
            heads[h] += worth["blocks.1.attn.qkv.weight"][rows].sum() + worth["blocks.1.attn.qkv.bias"][rows].sum()
        heads[h] += worth["blocks.1.attn.proj.weight"][:, h * E : (h + 1) * E].sum()
    np.testing.assert_allclose(head_scores(parts, axes, 1, H).importance(importance).numpy(), heads, rtol=1e-4)
    channels = worth["blocks.2.mlp.fc1.weight"].sum(1) + worth["blocks.2.mlp.fc1.bias"]
    channels = channels + worth["blocks.2.mlp.fc2.weight"].sum(0)
    np.testing.assert_allclose(along(parts, axes, Axis("mlp", 2)).importance(importance).numpy(), channels, rtol=1e-4)
    tokens = np.zeros(D)
    for name, value in worth.items():
        if name == "head.bias" or name.endswith(("qkv.bias", "fc1.bias")):
            continue
        if name in ("cls_token", "pos_embed"):
            tokens += value.sum((0, 1))
        elif name == "head.weight" or name.endswith(("qkv.weight", "fc1.weight")):
            tokens += value.sum(0)
        else:  # what writes to the tokens, and norms: the first dimension is D
            tokens += value.reshape(D, -1).sum(1)
    np.testing.assert_allclose(along(parts, axes, EMBED).importance(importance).numpy(), tokens, rtol=1e-4)
    blocks = [sum(v.sum() for n, v in worth.items() if n.startswith(f"blocks.{b}.")) for b in range(DEPTH)]
    found = [float(s.importance(importance)) for s in block_scores(parts, DEPTH)]
    np.testing.assert_allclose(found, blocks, rtol=1e-4)


def test_gradients_decide_who_goes(model, facts) -> None:
    """A block whose weights do not change the loss is the one that leaves, however large they are."""
    gradients = gradients_of(model)
    for name in gradients.mean:
        if name.startswith("blocks.2."):
            gradients.mean[name].zero_()
    options = {"ratio": 0.25, "what": ("depth",), "importance": "taylor"}
    pruning = StructuredPruning(StructuredPruningConfig(**options))
    student = compose(model, [pruning], facts)
    assert student.shapes == WHOLE
    found = pruning.cut(student, facts, 0, gradients)
    assert found.shapes.removed == (2,)
    assert found.stays == (0, 1, 3)
