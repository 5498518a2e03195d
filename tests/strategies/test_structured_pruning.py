from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.carry import axes_of
from strategies.catalog import facts_of
from strategies.catalog_build import facts_from
from strategies.claims import conflicts
from strategies.component.group_importance import along, block_scores, elements, head_scores
from strategies.component.pruning_choice import Candidates, choose
from strategies.component.pruning_goal import rounded_width
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import build_model, compose, student_of
from strategies.cost import blocks_of, network_macs
from strategies.facts import Facts
from strategies.gradients import Gradients
from strategies.inner_widths import inner_axes
from strategies.shapes import WHOLE
from strategies.surgery import EMBED, Axis, apply, vit_axes
from tests.strategies.checks import DEIT, counted_macs
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy

D, E, H, M, DEPTH = 48, 16, 3, 192, 4


def prune(model: nn.Module, facts: Facts, **options):
    return compose(model, [StructuredPruning(StructuredPruningConfig(**options))], facts)


@pytest.fixture
def model(toy_vit: ModelSpec) -> nn.Module:
    """Every parameter is random, and blocks differ in scale, so that rankings across blocks mean something."""
    torch.manual_seed(0)
    network = build_model(toy_vit).eval()
    with torch.no_grad():
        for i, block in enumerate(network.blocks):
            for parameter in block.parameters():
                parameter.add_(0.1 * (1 + 0.02 * i) * torch.randn_like(parameter))
    return network


@pytest.fixture
def facts(toy_vit: ModelSpec) -> Facts:
    return Facts(facts_of(toy_vit))


def importance_by_hand(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square of every group, head by head and channel by channel: [depth, H] and [depth, M]."""
    heads, channels = np.zeros((DEPTH, H)), np.zeros((DEPTH, M))
    for b in range(DEPTH):
        w = {k: v.detach().double().numpy() for k, v in model.blocks[b].state_dict().items()}
        for h in range(H):
            group = []
            for part in range(3):
                rows = slice(part * D + h * E, part * D + (h + 1) * E)
                group += [w["attn.qkv.weight"][rows].ravel(), w["attn.qkv.bias"][rows]]
            group.append(w["attn.proj.weight"][:, h * E : (h + 1) * E].ravel())
            heads[b, h] = np.sqrt(np.mean(np.concatenate(group) ** 2))
        for m in range(M):
            group = [w["mlp.fc1.weight"][m], w["mlp.fc1.bias"][m : m + 1], w["mlp.fc2.weight"][:, m]]
            channels[b, m] = np.sqrt(np.mean(np.concatenate(group) ** 2))
    return heads, channels


def kept_by_hand(importance: np.ndarray, ratio: float, scope: str, least: int, multiple: int) -> list[list[int]]:
    """Which groups stay, from sorted lists."""
    if scope == "per_block":
        counts = [int(importance.shape[1] * (1 - ratio) + 0.5)] * DEPTH
    else:
        rows = [sorted(row, reverse=True)[least:] for row in importance]
        candidates = sorted((value, b) for b, row in enumerate(rows) for value in row)
        gone = [b for _, b in candidates[: int(ratio * importance.size + 0.5)]]
        counts = [importance.shape[1] - gone.count(b) for b in range(DEPTH)]
    counts = [max(least, int(c / multiple + 0.5) * multiple) for c in counts]
    return [sorted(np.argsort(-row)[:c].tolist()) for row, c in zip(importance, counts, strict=True)]


@pytest.mark.parametrize("scope", ["per_block", "isomorphic"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.8])
def test_equals_the_network_with_the_least_important_silenced(model, facts, scope, ratio) -> None:
    heads, channels = importance_by_hand(model)
    kept_heads = kept_by_hand(heads, ratio, scope, 1, 1)
    kept_channels = kept_by_hand(channels, ratio, scope, 8, 8)
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for b, block in enumerate(silenced.blocks):
            for h in set(range(H)) - set(kept_heads[b]):
                block.attn.proj.weight[:, h * E : (h + 1) * E] = 0
            for m in set(range(M)) - set(kept_channels[b]):
                block.mlp.fc2.weight[:, m] = 0
    student = prune(model, facts, ratio=ratio, scope=scope).eval()
    assert student.shapes.blocks == {b: (len(kept_heads[b]), len(kept_channels[b])) for b in range(DEPTH)}
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(student(images).logits, silenced(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5}, {"ratio": 0.7, "scope": "global"}, {"ratio": 0.5, "what": ("mlp",)}]
)
def test_parameters_and_macs_follow_the_closed_form(model, facts, options) -> None:
    student = prune(model, facts, **options).eval()
    outside = 3 * 8 * 8 * D + D + D + 65 * D + 2 * D + 10 * D + 10  # patches, class token, positions, norm, head
    blocks = sum(
        2 * 2 * D + (3 * h * E * D + 3 * h * E) + (h * E * D + D) + (m * D + m) + (D * m + D)
        for h, m in student.shapes.blocks.values()
    )
    assert sum(p.numel() for p in student.parameters()) == outside + blocks
    for block in student.model.blocks:
        block.attn.fused_attn = False  # a counter does not see into fused kernels
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.randn(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * network_macs(facts.student, student.shapes.blocks)


def test_global_removes_a_share_of_all_weights(model, facts) -> None:
    shapes = prune(model, facts, ratio=0.5, scope="global", round_to=1).shapes.blocks
    left = sum(4 * D * E * h + 2 * D * m for h, m in shapes.values())
    everything = DEPTH * (4 * D * E * H + 2 * D * M)
    assert left / everything == pytest.approx(0.5, abs=2 * D * E * 4 / everything)


@pytest.mark.parametrize("scope", ["per_block", "isomorphic", "global"])
def test_ratio_zero_is_the_plain_network(model, facts, scope) -> None:
    images = torch.randn(2, 3, 64, 64)
    plain, state = model(images), copy.deepcopy(model.state_dict())
    student = prune(model, facts, ratio=0.0, scope=scope, round_to=7).eval()
    assert torch.equal(student(images).logits, plain)
    assert all(torch.equal(v, state[k]) for k, v in student.model.state_dict().items())


@pytest.mark.parametrize("scope", ["per_block", "isomorphic", "global"])
def test_target_macs_is_met_from_below_and_not_by_much(model, facts, scope) -> None:
    target = 5.5e6
    shapes = prune(model, facts, target_macs=target, scope=scope).shapes.blocks
    cost = network_macs(facts.student, shapes)
    N = 65
    step = 4 * N * D * E + 2 * N * N * E + 2 * N * D * 8  # one head and one multiple of channels, in one block
    blocks_at_once = DEPTH if scope == "per_block" else 1
    assert target - blocks_at_once * step < cost <= target


def test_target_macs_that_is_the_networks_own_cost_removes_nothing(model, facts) -> None:
    now = network_macs(facts.student, blocks_of(facts.student, facts.shapes))
    assert prune(model, facts, target_macs=float(now)).shapes == WHOLE


@pytest.mark.parametrize("target", [1e5, 1e9])
def test_unreachable_target_names_the_range(facts, target) -> None:
    lowest = network_macs(facts.student, dict.fromkeys(range(DEPTH), (1, 8)))
    highest = network_macs(facts.student, dict.fromkeys(range(DEPTH), (H, M)))
    with pytest.raises(OptionError, match="Write a value in this range") as caught:
        StructuredPruning(StructuredPruningConfig(target_macs=target)).claims(facts)
    assert caught.value.allowed == f"{lowest:.6g} to {highest:.6g}"


def test_the_lowest_reachable_target_is_reached(model, facts) -> None:
    lowest = network_macs(facts.student, dict.fromkeys(range(DEPTH), (1, 8)))
    assert prune(model, facts, target_macs=float(lowest)).shapes.blocks == dict.fromkeys(range(DEPTH), (1, 8))


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"target_macs": 4e6}])
def test_a_checkpoint_restores_and_a_later_stage_prunes_on(model, toy_vit, facts, options) -> None:
    student = prune(model, facts, **options).eval()
    pruned = Facts(facts.student, shapes=student.shapes)
    strategies = [StructuredPruning(StructuredPruningConfig(**options))]
    restored = compose(build_model(toy_vit, student.shapes), strategies, pruned, restored=True).eval()
    restored.load_network_state(student.network_state())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(restored(images).logits, student(images).logits)
    assert restored.shapes == student.shapes

    again = prune(restored.model, pruned, ratio=0.5, what=("mlp",), scope="per_block", round_to=1).eval()
    assert again.shapes.blocks == {b: (h, int(m / 2 + 0.5)) for b, (h, m) in student.shapes.blocks.items()}
    assert again(images).logits.shape == (2, 10)


def test_pruned_networks_train(model, facts) -> None:
    student = prune(model, facts, ratio=0.5).train()
    student(torch.randn(2, 3, 64, 64)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


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


@pytest.mark.parametrize(
    "wrong", [{}, {"ratio": 0.5, "target_macs": 1e9}, {"ratio": 1.0}, {"ratio": -0.1}, {"ratio": 0.5, "what": ()},
              {"ratio": 0.5, "what": ("mlp", "mlp")}, {"ratio": 0.5, "round_to": 0}]
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        StructuredPruningConfig(**wrong)


def test_networks_that_cannot_be_cut_are_refused_by_name() -> None:
    pruning = StructuredPruning(StructuredPruningConfig(target_macs=1e9))
    normed = ModelSpec(model="vit_tiny_patch16_224", args={"scale_mlp_norm": True})
    assert "cannot be cut" in conflicts([pruning], Facts(facts_of(normed)))[0]
    pooled = ModelSpec(model="vit_tiny_patch16_224", args={"global_pool": "map"})
    assert "Write `ratio` instead" in conflicts([pruning], Facts(facts_of(pooled)))[0]


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


NETWORKS = {
    "resnet18": {},
    "resnet50": {},
    "pvt_v2_b0": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 2, 1]},
}


@pytest.mark.parametrize("scope", ["per_block", "isomorphic", "global"])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_lose_channels_inside_their_blocks(name, scope) -> None:
    spec = ModelSpec(model=name, args={"num_classes": 10, **NETWORKS[name]})
    torch.manual_seed(0)
    model = build_model(spec).eval()
    facts = Facts(facts_from(model, name))
    silenced = copy.deepcopy(model)
    pruning = StructuredPruning(StructuredPruningConfig(ratio=0.5, what=("mlp",), scope=scope))
    assert conflicts([pruning], facts) == []
    axes = inner_axes(model)
    found = pruning.cut(student_of(model), facts, 0, None)
    tensors = dict(silenced.named_parameters())
    with torch.no_grad():  # the layers that read the channels read zeros
        for tensor, dims in axes.items():
            if 1 in dims and dims[1] in found.keep:
                gone = torch.ones(tensors[tensor].shape[1], dtype=torch.bool)
                gone[found.keep[dims[1]]] = False
                tensors[tensor][:, gone] = 0
    before = sum(p.numel() for p in model.parameters())
    student = compose(model, [pruning], facts).eval()
    assert sum(p.numel() for p in model.parameters()) < 0.8 * before
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(student(x).logits, silenced(x), rtol=1e-3, atol=1e-4)
    rebuilt = compose(build_model(spec, student.shapes), [pruning], facts.further(student.shapes), restored=True).eval()
    rebuilt.load_network_state(student.network_state())
    assert torch.equal(rebuilt(x).logits, student(x).logits)


def test_what_other_networks_cannot_lose_is_refused_by_name() -> None:
    resnet = Facts(facts_of(ModelSpec(model="resnet18", args={"num_classes": 10})))
    assert "Write `what: [mlp]`" in conflicts([strategy("structured_pruning", {"ratio": 0.5})], resnet)[0]
    target = strategy("structured_pruning", {"target_macs": 1e9, "what": ["mlp"]})
    assert "Write `ratio` instead" in conflicts([target], resnet)[0]
    nothing = Facts(facts_of(ModelSpec(model="convnextv2_atto", args={"num_classes": 10})))
    reason = conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["mlp"]})], nothing)[0]
    assert "no channels inside its blocks" in reason
    normed = Facts(facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"qk_norm": True})))
    assert (
        "Write `heads`"
        in conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["head_width"]})], normed)[0]
    )
    pooled = Facts(facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"global_pool": "map"})))
    assert (
        "Leave `embed` out" in conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["embed"]})], pooled)[0]
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("skip_attention", {"blocks": [1, 2]}),
        ("global_filter", {"blocks": [0, 2]}),
        ("linear_attention", {"kind": "additive"}),
    ],
)
def test_mlp_channels_leave_where_attention_has_left(name: str, options: dict[str, Any]) -> None:
    """Only the heads of attention that is gone cannot be cut."""
    replaced, facts = strategy(name, options), facts_for(toy())
    for what, fits in ((["mlp"], True), (["heads", "mlp"], False), (["head_width"], False), (["mlp", "embed"], False)):
        reasons = conflicts([replaced, strategy("structured_pruning", {"ratio": 0.5, "what": what})], facts)
        assert (not reasons) == fits
        assert all("the number of heads and channels of attention" in reason for reason in reasons)
    pruning = strategy("structured_pruning", {"ratio": 0.5, "what": ["mlp"]})
    network = student(toy(), replaced, pruning)
    hidden = [block.mlp.fc1.out_features for block in network.model.blocks]
    assert sum(hidden) == pytest.approx(4 * 96, abs=16)
    loss = step(network, [pruning, replaced], images(), torch.tensor([0, 3, 9, 2, 2, 7]), teacher(replaced))
    assert torch.isfinite(loss)
    rebuilt = compose(
        build_model(toy(), network.shapes), [pruning, replaced], facts.further(network.shapes), restored=True
    )
    rebuilt.load_network_state(network.network_state())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images()).logits, network.eval()(images()).logits)
