"""sparse_weights: densities, exchanges and patterns against loops; zeros that stay zeros; exact resume in the stage."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from strategies import registry
from strategies.claims import conflicts
from strategies.component.sparse_topology import (
    erk_densities,
    exchange,
    exchange_in_fours,
    exchanged_share,
    two_of_four,
)
from tests.strategies.checks import DEIT, assert_exports, counted_macs, deit_with, outside_blocks, plain_block
from tests.strategies.toys import facts_for, images, strategy, student, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def weights_of(network: Any) -> dict[str, torch.Tensor]:
    return {
        f"blocks.{b}.{name}": block.get_submodule(name).weight
        for b, block in enumerate(network.model.blocks)
        for name in LAYERS
    }


def train(network: Any, acting: Any, optimiser: torch.optim.Optimizer, steps: range, total: int) -> None:
    """As the training loop does it."""
    for i in steps:
        acting.at(network, i / total)
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randn(6, 3, 64, 64, generator=generator)
        cross_entropy(network(pixels).logits, LABELS).backward()
        acting.after_backward(network, i / total)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def test_erk_densities_follow_the_formula_and_keep_the_budget():
    sizes = [(8, 64), (64, 64), (256, 64)]
    found = erk_densities(sizes, 0.1)
    kept = sum(d * n * m for d, (n, m) in zip(found, sizes, strict=True))
    assert kept == pytest.approx(0.1 * sum(n * m for n, m in sizes))
    # All below 1: shares are in the ratio of (n + m) / (n m).
    ratios = [d / ((n + m) / (n * m)) for d, (n, m) in zip(found, sizes, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    # Where a layer would keep more than all, it keeps all, and the others share the rest.
    full = erk_densities(sizes, 0.5)
    assert full[0] == 1
    assert full[1] / (128 / 64**2) == pytest.approx(full[2] / (320 / (256 * 64)))
    assert sum(d * n * m for d, (n, m) in zip(full, sizes, strict=True)) == pytest.approx(
        0.5 * sum(n * m for n, m in sizes)
    )
    assert erk_densities(sizes, 1.0) == pytest.approx([1, 1, 1])


def test_the_exchanged_share_falls_along_a_cosine():
    assert exchanged_share(0, 0.5, 0.8) == 0.5
    assert exchanged_share(0.4, 0.5, 0.8) == pytest.approx(0.25)
    assert exchanged_share(0.2, 0.5, 0.8) == pytest.approx(0.25 * (1 + math.sqrt(0.5)))
    assert exchanged_share(0.8, 0.5, 0.8) == exchanged_share(1, 0.5, 0.8) == 0


def test_an_exchange_drops_the_smallest_and_grows_the_steepest():
    generator = torch.Generator().manual_seed(0)
    weight, growth = torch.randn(7, 5, generator=generator), torch.rand(7, 5, generator=generator)
    mask = torch.rand(7, 5, generator=generator) < 0.4
    found = exchange(mask, weight, growth, 4)
    kept = sorted(((abs(float(weight[i])), i) for i in map(tuple, mask.nonzero().tolist())), key=lambda t: t[0])
    staying = {i for _, i in kept[4:]}
    others = [(i, j) for i in range(7) for j in range(5) if (i, j) not in staying]
    grown = sorted(others, key=lambda i: -float(growth[i]))[:4]
    assert set(map(tuple, found.nonzero().tolist())) == staying | set(grown)
    assert torch.equal(exchange(mask, weight, growth, 0), mask)
    assert int(exchange(mask, weight, growth, 99).sum()) == int(mask.sum())


def test_two_of_four_stay_two_of_four():
    generator = torch.Generator().manual_seed(1)
    weight, growth = torch.randn(3, 12, generator=generator), torch.rand(3, 12, generator=generator)
    mask = two_of_four(weight.abs())
    for row in range(3):
        for four in range(3):
            part = weight[row, 4 * four : 4 * four + 4].abs()
            assert set(mask[row, 4 * four : 4 * four + 4].nonzero().flatten().tolist()) == set(
                part.topk(2).indices.tolist()
            )
    found = exchange_in_fours(mask, weight, growth, 4)
    assert (found.unflatten(1, (3, 4)).sum(-1) == 2).all()
    weakest = {}
    for row in range(3):
        for four in range(3):
            kept = [j for j in range(4 * four, 4 * four + 4) if mask[row, j]]
            j = min(kept, key=lambda j: abs(float(weight[row, j])))
            weakest[row, four] = (abs(float(weight[row, j])), j)
    chosen = sorted(weakest, key=lambda key: weakest[key][0])[:4]
    expected = mask.clone()
    for row, four in chosen:
        expected[row, weakest[row, four][1]] = False
        free = [j for j in range(4 * four, 4 * four + 4) if not expected[row, j]]
        expected[row, max(free, key=lambda j: float(growth[row, j]))] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"density": 0.3}, {"pattern": "2:4"}])
def test_training_exchanges_weights_and_keeps_their_number(options):
    acting = strategy("sparse_weights", {"update_every": 2, "until": 0.7, **options})
    network = student(toy(), acting).train()
    masks: Any = network.extras["sparse_weights"]
    first = {name: masks.mask(name).clone() for name in masks.names}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.05)
    train(network, acting, optimiser, range(4), 10)
    for name in masks.names:
        assert int(masks.mask(name).sum()) == int(first[name].sum())
    assert any(not torch.equal(masks.mask(name), first[name]) for name in masks.names)
    acting.at(network, 1.0)
    for name, weight in weights_of(network).items():
        assert not weight[~masks.mask(name)].any()
    # Late in the stage nothing is exchanged any more.
    settled = {name: masks.mask(name).clone() for name in masks.names}
    train(network, acting, optimiser, range(7, 10), 10)
    assert all(torch.equal(masks.mask(name), settled[name]) for name in masks.names)
    kept = sum(int(m.sum()) for m in settled.values()) / sum(m.numel() for m in settled.values())
    assert acting.measure(network(images()))["density"] == pytest.approx(kept)
    assert kept == pytest.approx(options.get("density", 0.5), abs=1e-3)


def test_gradients_are_dense_for_growth_and_sparse_for_the_update():
    acting = strategy("sparse_weights", {"update_every": 1, "density": 0.4})
    network = student(toy(), acting).train()
    acting.at(network, 0.0)
    cross_entropy(network(images()).logits, LABELS).backward()
    masks: Any = network.extras["sparse_weights"]
    name = "blocks.2.mlp.fc1"
    weight: Any = weights_of(network)[name]
    dense, before = weight.grad.clone(), masks.mask(name).clone()
    assert (dense[~before] != 0).any()
    acting.after_backward(network, 0.0)
    number = round(0.5 * int(before.sum()))
    assert torch.equal(masks.mask(name), exchange(before, weight.detach(), dense.abs(), number))
    assert torch.equal(weight.grad, dense * masks.mask(name))


def test_a_network_restored_in_between_goes_on_alike():
    acting = strategy("sparse_weights", {"update_every": 2, "density": 0.4})
    whole = student(toy(), acting).train()
    train(whole, acting, torch.optim.SGD(whole.parameters(), lr=0.1), range(3), 10)
    saved = copy.deepcopy(whole.state_dict())
    again = student(toy(), acting, seed=5).train()
    again.load_state_dict(saved)
    for network in (whole, again):
        train(network, acting, torch.optim.SGD(network.parameters(), lr=0.1), range(3, 7), 10)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("model", DEIT)
def test_dense_hardware_gains_nothing(model):
    network, D = deit_with(model, "sparse_weights", {"density": 0.25})
    assert counted_macs(network) == outside_blocks(D) + 12 * plain_block(D)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0.0}, "greater than 0"),
        ({"density": 1.2}, "less than or equal to 1"),
        ({"pattern": "2:4", "density": 0.3}, "density: 0.5"),
        ({"exchange": 1.0}, "less than 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        registry.resolver("sparse_weights").model_validate({"name": "sparse_weights", **options})


def test_layers_that_do_not_divide_into_fours_are_refused():
    odd = toy(embed_dim=54)  # heads 18 wide
    (reason,) = conflicts([strategy("sparse_weights", {"pattern": "2:4"})], facts_for(odd))
    assert "attn.qkv of block 0 has 54 inputs" in reason
    assert "unstructured" in reason
    assert not conflicts([strategy("sparse_weights", {})], facts_for(odd))


@pytest.mark.parametrize(
    ("other", "options", "fits"),
    [
        ("structured_pruning", {"ratio": 0.4}, True),
        ("structured_pruning", {"ratio": 0.4, "importance": "taylor"}, False),
        ("low_rank", {"rank": 8}, False),
        ("low_rank", {"rank": 8, "what": ["mlp"], "blocks": [0]}, False),
        ("weight_sharing", {}, False),
        ("spatial_reduction_attention", {}, True),
        ("skip_attention", {}, False),
        ("linear_attention", {}, True),
    ],
)
def test_what_it_combines_with(other, options, fits):
    reasons = conflicts([strategy("sparse_weights", {}), strategy(other, options)], facts_for(toy()))
    assert (not reasons) == fits, reasons
    assert all("sparse_weights" in r and other in r and "Way out:" in r for r in reasons)


def test_it_exports_in_the_form_that_sparse_tensor_cores_read():
    acting = strategy("sparse_weights", {"pattern": "2:4"})
    network = student(toy(), acting)
    acting.at(network, 1.0)
    assert_exports(network)
    for weight in weights_of(network).values():
        assert ((weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()
