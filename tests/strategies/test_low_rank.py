"""low_rank: factors by SVD, ranks that travel with the network, and layers that pruning made small."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from orchestrator.training.checkpoint import load_network, save_network
from strategies import registry
from strategies.claims import conflicts
from strategies.compose import build_model, compose, ordered
from strategies.factors import Factored, rank_for, some_outputs, truncated
from strategies.facts import Facts
from strategies.shapes import Shapes
from tests.strategies.checks import DEIT, assert_exports, counted_macs, deit_with, outside_blocks
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def decaying(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values are 1, 1/2, 1/4, …"""
    generator = numpy.random.default_rng(seed)
    left, _ = numpy.linalg.qr(generator.standard_normal((rows, rows)))
    right, _ = numpy.linalg.qr(generator.standard_normal((columns, columns)))
    number = min(rows, columns)
    return torch.from_numpy(left[:, :number] * 0.5 ** numpy.arange(number) @ right[:number]).float()


def test_factors_are_the_nearest_of_their_rank_and_share_the_singular_values():
    weight = decaying(9, 6)
    down, up = truncated(weight, 2)
    assert (down.shape, up.shape) == ((2, 6), (9, 2))
    # Eckart and Young: what is missing has the norm of the singular values that were left out.
    missing = numpy.linalg.norm(weight.numpy() - up.numpy() @ down.numpy())
    assert missing == pytest.approx(sum(0.25**i for i in range(2, 6)) ** 0.5, rel=1e-4)
    numpy.testing.assert_allclose(up.numpy().T @ up.numpy(), numpy.diag([1, 0.5]), atol=1e-5)
    numpy.testing.assert_allclose(down.numpy() @ down.numpy().T, numpy.diag([1, 0.5]), atol=1e-5)


@pytest.mark.parametrize(("energy", "rank"), [(0.7, 1), (0.76, 2), (0.93, 2), (0.95, 3), (1.0, 5)])
def test_energy_takes_the_smallest_rank_that_keeps_it(energy, rank):
    # Squares 1, 1/4, 1/16, 1/64, 1/256 of 341/256: shares 0.751, 0.938, 0.985, 0.997, 1.
    assert rank_for(torch.diag(0.5 ** torch.arange(5.0)), energy) == rank


def test_a_full_rank_gives_the_same_layer_and_some_outputs_are_rows_of_it():
    layer, x = nn.Linear(6, 9), torch.randn(4, 6)
    factored = Factored(*truncated(layer.weight.detach(), 6), layer.bias.detach())
    torch.testing.assert_close(factored(x), layer(x))
    for form in (layer, factored):
        torch.testing.assert_close(some_outputs(form, x, slice(3, 7)), layer(x)[:, 3:7])


def test_the_network_computes_with_the_truncated_matrices():
    options = {"rank": 8, "what": ["proj", "mlp"], "blocks": [1, 2]}
    network, plain = student(toy(), strategy("low_rank", options)).eval(), student(toy()).eval()
    for b in (1, 2):
        block = plain.model.blocks[b]
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            left, values, right = numpy.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
            values[8:] = 0
            layer.weight.data = torch.from_numpy(left * values @ right).float()
    with torch.no_grad():
        torch.testing.assert_close(network(images()).logits, plain(images()).logits, atol=1e-4, rtol=1e-4)
    assert isinstance(network.model.blocks[1].attn.qkv, nn.Linear)
    assert isinstance(network.model.blocks[0].mlp.fc1, nn.Linear)


@pytest.mark.parametrize("model", DEIT)
def test_macs_are_the_closed_form(model):
    network, D = deit_with(model, "low_rank", {"rank": 64})
    block = 16 * 197 * 64 * D + 2 * 197**2 * D
    assert counted_macs(network) == outside_blocks(D) + 12 * block
    part, _ = deit_with(model, "low_rank", {"rank": 64, "what": ["mlp"], "blocks": [0, 11]})
    saved = 8 * 197 * D**2 - 10 * 197 * 64 * D
    assert counted_macs(part) == outside_blocks(D) + 12 * (12 * 197 * D**2 + 2 * 197**2 * D) - 2 * saved


def test_ranks_found_by_energy_travel_with_the_checkpoint(tmp_path):
    acting = strategy("low_rank", {"energy": 0.5})
    network = student(toy(), acting)
    step(network, [acting], images(), LABELS, teacher())
    ranks = network.shapes.ranks
    assert set(ranks) == {f"blocks.{b}.{n}" for b in range(4) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert len(set(ranks.values())) > 1
    assert Shapes.from_json(json.loads(json.dumps(network.shapes.to_json()))) == network.shapes
    save_network(tmp_path, network, toy(), [acting.config], 10)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(images()).logits, network.eval()(images()).logits)


def test_a_later_stage_goes_on_with_the_factors_and_makes_smaller_ones_when_asked_to():
    first = student(toy(), strategy("low_rank", {"rank": 12}))
    facts = facts_for(toy()).further(first.shapes)
    again = compose(build_model(toy(), first.shapes), [], facts)
    again.load_network_state(first.network_state())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).logits, first.eval()(images()).logits)
    smaller = compose(again.model, [strategy("low_rank", {"rank": 5})], facts)
    assert set(smaller.shapes.ranks.values()) == {5}
    attn = smaller.model.blocks[0].attn
    assert (attn.qkv.down.weight.shape, attn.qkv.up.weight.shape) == ((5, 48), (144, 5))
    reasons = conflicts([strategy("structured_pruning", {"ratio": 0.5})], facts)
    assert len(reasons) == 1
    assert "stored layers as factors" in reasons[0]


def test_it_factorises_what_pruning_leaves_in_whatever_order_they_are_listed():
    pair = [strategy("low_rank", {"rank": 20}), strategy("structured_pruning", {"ratio": 0.6, "what": ["heads"]})]
    assert [s.name for s in ordered(pair)] == ["structured_pruning", "low_rank"]
    network, again = student(toy(), *pair), student(toy(), *reversed(pair))
    with torch.no_grad():
        assert torch.equal(network.eval()(images()).logits, again.eval()(images()).logits)
    # One head of three is left: 48 · 48 / (48 + 48) is below 20 for qkv [48 → 48], and less for proj.
    assert {n.partition(".")[2].partition(".")[2] for n in network.shapes.ranks} >= {"mlp.fc1", "mlp.fc2"}
    facts = facts_for(toy()).further(network.shapes)
    rebuilt = compose(build_model(toy(), network.shapes), pair, facts, restored=True)
    rebuilt.load_network_state(network.network_state())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images()).logits, network(images()).logits)


def test_pruning_that_makes_all_layers_too_small_is_refused_at_plan_time():
    factors, pruning = (
        strategy("low_rank", {"rank": 20, "what": ["proj"]}),
        strategy("structured_pruning", {"ratio": 0.6, "what": ["heads"]}),
    )
    # One head of 16 channels is left: 16 · 48 / (16 + 48) = 12, and rank 12 saves nothing.
    same_stage = conflicts([factors, pruning], facts_for(toy()))
    next_stage = conflicts([factors], pruning.leaves(facts_for(toy())))
    for reasons in (same_stage, next_stage):
        (reason,) = reasons
        for part in ("low_rank.rank", "rank 20", "vit_tiny", "1 to 11", "Write a smaller rank"):
            assert part in reason
    fits = strategy("low_rank", {"rank": 11, "what": ["proj"]})
    assert conflicts([fits, pruning], facts_for(toy())) == []


def test_pruning_that_leaves_less_than_planned_is_an_error():
    """Two heads a block are planned; block 0, whose heads matter least, keeps one of them."""
    pair = [
        strategy("low_rank", {"rank": 18, "what": ["proj"], "blocks": [0]}),
        strategy("structured_pruning", {"ratio": 1 / 3, "what": ["heads"]}),
    ]
    assert conflicts(pair, facts_for(toy())) == []
    network = build_model(toy())
    with torch.no_grad():
        for parameter in network.get_submodule("blocks.0.attn").parameters():
            parameter.mul_(0.01)
    with pytest.raises(ValueError, match=r"low_rank\.rank: no layer .* Way out: a smaller rank"):
        compose(network, pair, facts_for(toy()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 24}, ["attn.proj", "1 to 23", "leave proj out"]),
        ({"rank": 39}, ["mlp.fc1", "1 to 23"]),
        ({"rank": 36, "what": ["qkv"]}, ["attn.qkv", "1 to 35", "Write a smaller rank."]),
        ({"rank": 4, "blocks": [4]}, ["there is no block 4", "0 to 3"]),
    ],
)
def test_ranks_that_save_nothing_are_refused(options, words):
    (reason,) = conflicts([strategy("low_rank", options)], facts_for(toy()))
    assert all(word in reason for word in words), reason
    assert reason.startswith("low_rank.")


@pytest.mark.parametrize("options", [{}, {"rank": 3, "energy": 0.5}, {"energy": 1.1}, {"rank": 3, "what": []}])
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"rank|energy|what"):
        registry.resolver("low_rank").model_validate({"name": "low_rank", **options})


@pytest.mark.parametrize(
    ("other", "options", "fits"),
    [
        ("spatial_reduction_attention", {}, True),
        ("skip_attention", {}, False),
        ("skip_attention", {"blocks": [2]}, True),
        ("linear_attention", {"kind": "additive"}, False),
        ("linear_attention", {"kind": "elu"}, True),
        ("structured_pruning", {"ratio": 0.3, "importance": "taylor"}, False),
    ],
)
def test_what_it_combines_with(other, options, fits):
    low = {"rank": 8, "blocks": [0, 1]} if fits else {"rank": 8}
    reasons = conflicts([strategy("low_rank", low), strategy(other, options)], facts_for(toy()))
    assert (not reasons) == fits, reasons
    mlp = [strategy("low_rank", {"rank": 8, "what": ["mlp"]}), strategy(other, options)]
    assert (not conflicts(mlp, facts_for(toy()))) == (other != "structured_pruning")


def test_reduced_keys_read_factors():
    pair = ordered([strategy("low_rank", {"rank": 8}), strategy("spatial_reduction_attention", {})])
    network = student(toy(), *pair).eval()
    dense = student(toy(), strategy("spatial_reduction_attention", {})).eval()
    kept = {k: v for k, v in network.state_dict().items() if k in dense.state_dict()}
    dense.load_state_dict({**dense.state_dict(), **kept})
    for b, block in enumerate(dense.model.blocks):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            layer = network.model.blocks[b].get_submodule(name)
            block.get_submodule(name).weight.data = layer.product()
            block.get_submodule(name).bias.data = layer.up.bias.data
    with torch.no_grad():
        torch.testing.assert_close(network(images()).logits, dense(images()).logits, atol=1e-4, rtol=1e-4)


def test_it_exports():
    assert_exports(student(toy(), strategy("low_rank", {"rank": 8})))


def test_a_network_outside_of_the_loop_is_refused():
    from specs.model import ModelSpec
    from strategies.catalog import facts_of

    resnet = Facts(facts_of(ModelSpec(model="resnet18", args={"num_classes": 10})))
    reasons = conflicts([strategy("low_rank", {"rank": 8})], resnet)
    assert reasons
    assert all("Way out:" in r for r in reasons)
