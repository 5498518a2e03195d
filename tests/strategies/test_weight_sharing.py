"""weight_sharing: one matrix for several blocks, counted once everywhere; transformations that make blocks differ."""

from __future__ import annotations

import copy
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

from orchestrator.measurement.compute import checkpoint_bytes, num_parameters
from orchestrator.training.checkpoint import WEIGHTS, load_network, save_network
from orchestrator.training.optimizer import make_optimizer
from specs.training import OptimizerSpec
from strategies.attention import attend
from strategies.claims import conflicts
from strategies.component.shared_transform import HeadMixing, LocalMlp
from strategies.compose import build_model, compose, ordered
from strategies.state import State
from tests.strategies.checks import DEIT, assert_exports, counted_macs, deit_with, outside_blocks, plain_block
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])
SHARED = 48 * 144 + 144 + 48 * 48 + 48 + 48 * 192 + 192 + 192 * 48 + 48
"""Parameters of the four layers of a toy block."""


def test_it_computes_as_the_plain_network_whose_blocks_hold_copies():
    network = student(toy(), strategy("weight_sharing", {"group": 3})).eval()
    plain = student(toy()).eval()
    for b in (1, 2):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            layer = copy.deepcopy(plain.model.blocks[0].get_submodule(name))
            plain.model.blocks[b].set_submodule(name, layer)
    with torch.no_grad():
        # The transformations start as doing nothing.
        torch.testing.assert_close(network(images()).logits, plain(images()).logits, atol=1e-5, rtol=1e-5)
    blocks = network.model.blocks
    assert blocks[1].norm1.weight is not blocks[0].norm1.weight
    assert blocks[3].attn.qkv.weight is not blocks[0].attn.qkv.weight


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, [[0, 1], [2, 3]]),
        ({"group": 3}, [[0, 1, 2]]),
        ({"group": 9}, [[0, 1, 2, 3]]),
        ({"group": 2, "blocks": [0, 1, 3]}, [[0, 1]]),
        ({"group": 2, "blocks": [3, 2, 0]}, [[2, 3]]),
        ({"group": 1}, []),
    ],
)
def test_groups_are_blocks_in_a_row(options, groups):
    acting: Any = strategy("weight_sharing", options)
    assert acting.groups(4) == groups


def test_shared_weights_count_once_everywhere(tmp_path):
    acting = strategy("weight_sharing", {"transform": False})
    network, plain = student(toy(), acting), student(toy())
    assert num_parameters(network) == num_parameters(plain) - 2 * SHARED
    groups = make_optimizer(network, OptimizerSpec()).param_groups
    optimised = [id(p) for group in groups for p in group["params"]]
    assert len(optimised) == len(set(optimised)) == len(list(network.parameters()))
    state = network.network_state()
    assert "blocks.0.attn.qkv.weight" in state
    assert "blocks.1.attn.qkv.weight" not in state
    assert checkpoint_bytes(state) < checkpoint_bytes(plain.network_state()) - 2 * SHARED * 4
    step(network, [acting], images(), LABELS, teacher())
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    save_network(tmp_path, network, toy(), [acting.config], 10)
    saved = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert sum(t.numel() for t in saved.values()) == num_parameters(network)
    again = load_network(tmp_path)
    assert again.model.blocks[1].mlp.fc1 is again.model.blocks[0].mlp.fc1
    with torch.no_grad():
        assert torch.equal(again(images()).logits, network.eval()(images()).logits)
    average = copy.deepcopy(network)
    assert average.model.blocks[1].mlp.fc1 is average.model.blocks[0].mlp.fc1
    assert average.model.blocks[1].mlp.fc1 is not network.model.blocks[1].mlp.fc1


def test_a_shared_matrix_gets_the_sum_of_its_blocks_gradients():
    acting = strategy("weight_sharing", {"transform": False})
    network, plain = student(toy(), acting).eval(), student(toy()).eval()
    for b in (1, 3):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            plain.model.blocks[b].set_submodule(name, copy.deepcopy(plain.model.blocks[b - 1].get_submodule(name)))
    for one in (network, plain):
        torch.nn.functional.cross_entropy(one(images()).logits, LABELS).backward()
    for b in (0, 2):
        own, other = (plain.model.blocks[i].attn.qkv.weight.grad for i in (b, b + 1))
        torch.testing.assert_close(network.model.blocks[b].attn.qkv.weight.grad, own + other, atol=1e-6, rtol=1e-4)


def test_head_mixing_is_the_formula():
    torch.manual_seed(3)
    attn = student(toy("qk_norm")).model.blocks[0].attn.eval()
    mixing, x = HeadMixing(3), torch.randn(2, 5, 48)
    with torch.no_grad():
        mixing.logits.normal_()
        mixing.weights.normal_()
        found, look = attend(attn, x, State(x, 1), mix=mixing, want=frozenset({"class_attention"}))
        assert look.class_attention is not None
        q, k, v = (attn.qkv(x).reshape(2, 5, 3, 3, 16).permute(2, 0, 3, 1, 4)).unbind(0)
        q, k, v = (t.double().numpy() for t in (attn.q_norm(q), attn.k_norm(k), v))
        F, G = mixing.logits.double().numpy(), mixing.weights.double().numpy()
        y = numpy.zeros((2, 5, 48))
        for r in range(2):
            logits = [q[r, h] @ k[r, h].T / 4 for h in range(3)]
            before = [sum(F[h, i] * logits[i] for i in range(3)) for h in range(3)]
            weights = [numpy.exp(b) / numpy.exp(b).sum(axis=1, keepdims=True) for b in before]
            for h in range(3):
                after = sum(G[h, i] * weights[i] for i in range(3))
                y[r, :, 16 * h : 16 * h + 16] = after @ v[r, h]
                numpy.testing.assert_allclose(look.class_attention[r, h].numpy(), after[0], atol=1e-5)
        expected = attn.proj(torch.from_numpy(y).float())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_convolution_sees_patches_at_their_places_alone():
    torch.manual_seed(4)
    block = student(toy("registers")).model.blocks[0].eval()
    local: Any = LocalMlp(48)
    x = torch.randn(1, 5 + 9, 48)
    with torch.no_grad():
        local.conv.weight.normal_()
        local.conv.bias.normal_()
        y = block.norm2(x)
        expected = y.clone()
        for row in range(3):
            for column in range(3):
                total = local.conv.bias.clone()
                for i in range(3):
                    for j in range(3):
                        total += local.conv.weight[:, 0, 3 + i - row, 3 + j - column] * y[0, 5 + 3 * i + j]
                expected[0, 5 + 3 * row + column] += total
        torch.testing.assert_close(local(block, State(x, 5)).x, x + block.mlp(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", DEIT)
def test_macs_are_the_closed_form(model):
    network, D = deit_with(model, "weight_sharing", {"group": 4, "transform": False})
    assert counted_macs(network) == outside_blocks(D) + 12 * plain_block(D)
    network, D = deit_with(model, "weight_sharing", {"group": 4, "blocks": [0, 1, 2, 3, 4, 5, 6, 7]})
    H = D // 64
    transform = 2 * H**2 * 197**2 + 49 * 196 * D
    assert counted_macs(network) == outside_blocks(D) + 12 * plain_block(D) + 8 * transform


@pytest.mark.parametrize(
    ("other", "options", "transformed", "shared"),
    [
        ("token_merging", {"r": 4}, False, True),
        ("token_reorganization", {}, False, True),
        ("linear_attention", {}, False, True),
        ("linear_attention", {"kind": "additive"}, False, False),
        ("window_attention", {"window": 4}, False, True),
        ("rotary_position", {}, True, True),
        ("attention_relation", {}, True, True),
        ("low_rank", {"rank": 8}, False, False),
        ("structured_pruning", {"ratio": 0.3}, False, False),
        ("structured_pruning", {"ratio": 0.3, "scope": "per_block"}, True, True),
        ("structured_pruning", {"ratio": 0.3, "what": ["embed", "depth"]}, True, True),
    ],
)
def test_what_it_combines_with(other, options, transformed, shared):
    for transform, fits in ((True, transformed), (False, shared)):
        pair = ordered([strategy("weight_sharing", {"transform": transform}), strategy(other, options)])
        reasons = conflicts(pair, facts_for(toy()))
        assert (not reasons) == fits, reasons
        assert all("Way out:" in reason and other in reason for reason in reasons)
        if fits:
            network = student(toy(), *pair)
            assert torch.isfinite(step(network, pair, images(), LABELS, teacher(*pair)))


def test_blocks_that_pruning_left_different_do_not_share():
    pruned = student(toy(), strategy("structured_pruning", {"ratio": 0.5, "scope": "global"}))
    facts = facts_for(toy()).further(pruned.shapes)
    assert len(set(pruned.shapes.blocks.values())) > 1
    reasons = conflicts([strategy("weight_sharing", {"group": 4})], facts)
    assert any("different sizes" in reason and "per_block" in reason for reason in reasons)


def test_a_network_of_factors_shares_factors():
    factored = student(toy(), strategy("low_rank", {"rank": 8}))
    facts = facts_for(toy()).further(factored.shapes)
    network = compose(build_model(toy(), factored.shapes), [strategy("weight_sharing", {})], facts)
    assert network.model.blocks[1].attn.qkv is network.model.blocks[0].attn.qkv
    assert "blocks.1.attn.qkv.down.weight" not in network.network_state()


def test_it_exports():
    assert_exports(student(toy(), strategy("weight_sharing", {})))


def test_blocks_that_do_not_exist_are_refused():
    (reason,) = conflicts([strategy("weight_sharing", {"blocks": [3, 4]})], facts_for(toy()))
    assert reason.startswith("weight_sharing.blocks: there is no block 4")
