from __future__ import annotations

import math

import pytest
import torch

from strategies.dynamic.keep_predictor import HeadwisePredictor, KeepPredictor
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
    plain_block,
)
from tests.strategies.toys import VARIANTS, images, strategy, student, toy

NAME = "soft_token_pruning"


def test_scores_are_a_mean_over_heads_weighted_by_each_patch() -> None:
    torch.manual_seed(0)
    predictor = HeadwisePredictor(12, 3)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    x, keep = torch.randn(2, 5, 12), torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1.0]]).unsqueeze(-1)
    found = predictor(x, keep).exp()
    alone: KeepPredictor = predictor.predictor
    parts = x.split(4, dim=-1)
    scores = torch.stack([alone(part, keep).exp() for part in parts])
    means = torch.stack([part.mean(-1) for part in parts], dim=-1)
    first, second = predictor.importance[0], predictor.importance[2]
    inner = means @ first.weight.T + first.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    weights = 1 / (1 + (-(inner @ second.weight.T + second.bias)).exp())
    for i in range(2):
        for j in range(5):
            expected = sum(weights[i, j, h] * scores[h, i, j] for h in range(3)) / weights[i, j].sum()
            torch.testing.assert_close(found[i, j], expected)


@pytest.mark.parametrize("sizes", [False, True])
def test_the_package_is_the_mean_of_what_leaves_weighted_by_its_probability(sizes: bool) -> None:
    from dataclasses import replace

    acting = strategy(NAME, {"keep_rate": 0.5, "blocks": [1, 2], "kl_weight": 0.0})
    network = student(toy(), acting).eval()
    with torch.no_grad():
        state = network.embed(images(3))
        if sizes:
            state = replace(state, size=torch.randint(1, 4, (3, 65, 1)).float())
        seam = network.entry[1]
        after = seam(state)
        p = seam.predictor(state.x[:, 1:], None)[..., 0].exp()
    assert after.x.shape == (3, 1 + 32 + 1, 48)
    for i in range(3):
        order = sorted(range(64), key=lambda j: -p[i, j].item())
        leaving = order[32:]
        package = sum(p[i, j] * state.x[i, 1 + j] for j in leaving) / sum(p[i, j] for j in leaving)
        torch.testing.assert_close(after.x[i, -1], package, atol=1e-5, rtol=1e-5)
        if sizes:
            assert after.size[i, -1].item() == sum(state.size[i, 1 + j].item() for j in leaving)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packaging_what_is_gathered_equals_packaging_what_is_masked(variant: str) -> None:
    acting = strategy(NAME, {"keep_rate": 0.5, "kl_weight": 0.0})
    gathers, masks = (student(toy(variant), acting).eval() for _ in range(2))
    masks.always_tap, masks.taps = True, frozenset({3})
    with torch.no_grad():
        fewer, all_there = gathers(images()), masks(images())
    P = gathers.model.num_prefix_tokens
    assert fewer.num_tokens == [P + 64, P + 33, P + 17, P + 9]
    assert all_there.num_tokens == [P + 64, P + 65, P + 66, P + 67]
    assert all_there.features[3].shape[1] == P + 64
    torch.testing.assert_close(fewer.logits, all_there.logits, atol=1e-5, rtol=1e-5)


def test_in_training_what_left_is_found_at_its_package() -> None:
    acting = strategy(NAME, {"keep_rate": 0.5, "blocks": [0, 2], "kl_weight": 0.0})
    network = student(toy(), acting).train()
    torch.manual_seed(7)
    first = network.entry[0](network.embed(images(3)))
    second = network.entry[2](first)
    grid = second.full_grid()
    assert grid.shape == (3, 65, 48)
    for i in range(3):
        for j in range(1, 65):
            if not first.keep[i, j]:
                # The first package may itself have left: then the second has it.
                assert second.source[i, j] == (65 if second.keep[i, 65] else 66)
            elif not second.keep[i, j]:
                assert second.source[i, j] == 66
            else:
                assert second.source[i, j] == j


def test_evaluation_draws_nothing() -> None:
    network = student(toy(), strategy(NAME, {"kl_weight": 0.0})).eval()
    with torch.no_grad():
        first = network(images()).logits
        torch.rand(17)
        assert torch.equal(network(images()).logits, first)


@pytest.mark.parametrize("model", DEIT)
def test_counted_macs_equal_the_closed_form(model: str) -> None:
    network, D = deit_with(model, NAME, {"keep_rate": 0.7, "kl_weight": 0.0})
    heads, E = D // 64, 64
    inner = max(heads // 2, 1)
    total, n = outside_blocks(D), 196
    for block in range(12):
        if block in (3, 6, 9):
            total += n * heads * (E * E + E * E // 2 + E * E // 8 + E // 2) + 2 * n * heads * inner
            total += n * D  # the package
            n = math.floor(196 * 0.7 ** (block // 3) + 1e-9) + 1
        total += plain_block(D, n + 1)
    assert counted_macs(network) == total


def test_it_exports_and_images_do_not_mix() -> None:
    assert_exports(student(toy(), strategy(NAME, {"kl_weight": 0.0})))
    assert_images_do_not_mix(student(toy(), strategy(NAME, {"kl_weight": 0.0})))
