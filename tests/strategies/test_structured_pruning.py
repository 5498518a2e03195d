"""Heads and MLP channels leave, in one step and by their magnitude."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import build_model, compose
from strategies.cost import blocks_of, network_macs
from strategies.facts import Facts
from strategies.shapes import WHOLE
from tests.strategies.pruned import DEPTH, D, E, H, M, prune, uneven
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy


@pytest.fixture
def model(toy_vit: ModelSpec) -> nn.Module:
    return uneven(toy_vit)


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
