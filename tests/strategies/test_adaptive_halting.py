from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from orchestrator.measurement.compute import counts_of_images, static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.dynamic.halting import halting, prior_divergence
from tests.strategies.checks import DEIT, assert_images_do_not_mix, deit_with, outside_blocks, plain_block
from tests.strategies.toys import VARIANTS, facts_for, images, strategy, student, toy

NAME = "adaptive_halting"
ACTING = {"gamma": 5.0, "beta": 1.0}


def by_hand(scores: list[float], threshold: float) -> tuple[list[float], int, float]:
    """Of one token, straight from section 3: its layers' shares, the layers it passes, and its remainder."""
    shares, total = [], 0.0
    for layer, h in enumerate(scores):
        score = 1.0 if layer == len(scores) - 1 else h
        if total + score > threshold:
            return [*shares, 1 - total] + [0.0] * (len(scores) - layer - 1), layer + 1, 1 - total
        shares.append(score)
        total += score
    raise AssertionError("the last layer always halts")


@pytest.mark.parametrize("threshold", [0.5, 0.99])
def test_shares_equal_the_papers_definition_and_sum_to_one(threshold: float) -> None:
    scores = torch.rand(40, 5, dtype=torch.float64) ** 2
    total, shares = torch.zeros(40, dtype=torch.float64), []
    for layer in range(5):
        share, total, _ = halting(scores[:, layer], total, threshold, last=layer == 4)
        shares.append(share)
    found = torch.stack(shares, dim=1)
    for token in range(40):
        expected, _, _ = by_hand(scores[token].tolist(), threshold)
        torch.testing.assert_close(found[token], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.sum(1), torch.ones(40, dtype=torch.float64))


def test_gradients_reach_every_score_before_halting() -> None:
    def output(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        x = torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)
        one, total, _ = halting(first, torch.zeros_like(first), 0.99, last=False)
        two, total, _ = halting(second, total, 0.99, last=False)
        three, _, _ = halting(torch.zeros_like(first), total, 0.99, last=True)
        return one * x[0] + two * x[1] + three * x[2]

    scores = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.2, 0.6], [0.3, 0.7])]
    assert torch.autograd.gradcheck(output, scores)


def test_a_training_pass_is_the_weighted_sum_over_blocks() -> None:
    """Against a loop over blocks that masks attention by -inf, and sums outputs token by token."""
    acting = strategy(NAME, ACTING)
    network = student(toy(), acting).train()
    out = network(images(3))
    x = network.embed(images(3)).x
    states, alive = [], torch.ones(3, 65, dtype=torch.bool)
    scores = torch.zeros(3, 65, 4)
    total = torch.zeros(3, 65)
    for layer, block in enumerate(network.model.blocks):
        seen = alive.clone()
        seen[:, 0] = True
        bias = torch.zeros(3, 1, 65, 65).masked_fill(~seen[:, None, None, :], -math.inf)
        bias[:, :, range(65), range(65)] = 0.0
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).reshape(3, 65, 3, 3, 16).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 0.25 + bias).softmax(-1)
        x = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        states.append(x)
        scores[:, :, layer] = torch.sigmoid(5.0 * x[:, :, 0] - 1.0)
        total = torch.where(alive, total + scores[:, :, layer], total)
        alive = total <= 0.99
    mixed, ponder, mean_scores = torch.zeros(3, 65, 48), [], torch.zeros(4)
    for i in range(3):
        for t in range(65):
            shares, layers, remainder = by_hand(scores[i, t].tolist(), 0.99)
            mixed[i, t] = sum(share * states[layer][i, t] for layer, share in enumerate(shares))
            ponder.append(layers + remainder)
            mean_scores[:layers] += scores[i, t, :layers].detach() / (3 * 65)
    assert len(set(ponder)) > 20
    torch.testing.assert_close(out.logits, network.model.head(network.model.norm(mixed)[:, 0]), atol=1e-4, rtol=1e-4)
    terms = acting.losses(out, None, torch.zeros(3).long())
    assert float(terms["ponder"].detach()) == pytest.approx(sum(ponder) / len(ponder), rel=1e-4)
    prior = [math.exp(-((layer - 8 / 3) ** 2) / 2) for layer in range(1, 5)]
    z = (mean_scores / mean_scores.sum()).tolist()
    divergence = sum(p / sum(prior) * math.log(p / sum(prior) / q) for p, q in zip(prior, z, strict=True))
    assert float(terms["prior"].detach()) == pytest.approx(divergence, rel=1e-3)


def test_the_prior_is_nothing_where_scores_follow_it() -> None:
    normal = torch.exp(-0.5 * (torch.arange(1, 7) - 4.0) ** 2)
    assert float(prior_divergence(0.3 * normal, 4.0)) == pytest.approx(0, abs=1e-6)
    assert float(prior_divergence(normal.flip(0), 4.0)) > 0.1
    assert torch.isfinite(prior_divergence(torch.zeros(6), 4.0))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [ACTING, {"gamma": 2.0, "beta": 0.0, "threshold": 0.6}])
def test_packing_equals_masking(variant: str, options: dict[str, Any]) -> None:
    packs, masks = (student(toy(variant), strategy(NAME, options)).eval() for _ in range(2))
    masks.always_tap, masks.taps = True, frozenset({0})
    with torch.no_grad():
        fewer, all_there = packs(images()), masks(images())
    P = packs.model.num_prefix_tokens
    assert fewer.num_tokens[0] == all_there.num_tokens[3] == P + 64
    assert fewer.num_tokens[3] < fewer.num_tokens[1] < P + 64
    torch.testing.assert_close(fewer.logits, all_there.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "average_pool"])
def test_everything_may_halt_at_once(variant: str) -> None:
    packs, masks = (student(toy(variant), strategy(NAME, {"gamma": 0.0, "beta": -9.0})).eval() for _ in range(2))
    masks.always_tap, masks.taps = True, frozenset({0})
    with torch.no_grad():
        fewer = packs(images())
        torch.testing.assert_close(fewer.logits, masks(images()).logits, atol=1e-5, rtol=1e-5)
    assert fewer.num_tokens == [64 + packs.model.num_prefix_tokens, 1, 1, 1]


def test_merged_tokens_halt_with_their_sizes() -> None:
    chosen = [strategy("token_merging", {"r": 8, "blocks": [0]}), strategy(NAME, ACTING)]
    packs, masks = (student(toy("average_pool"), *chosen).eval() for _ in range(2))
    masks.always_tap, masks.taps = True, frozenset({0})
    with torch.no_grad():
        torch.testing.assert_close(packs(images()).logits, masks(images()).logits, atol=1e-5, rtol=1e-5)


def test_images_that_leave_take_their_tokens_along() -> None:
    chosen = [strategy(NAME, ACTING), strategy("early_exit", {"blocks": [1, 2], "threshold": 0.125})]
    network = student(toy(), *chosen).eval()
    with torch.no_grad():
        out = network(images())
    assert len(out.exit_block.unique()) > 1
    assert_images_do_not_mix(network)


@pytest.mark.parametrize("model", DEIT)
def test_macs_are_those_of_the_tokens_that_are_left(model: str) -> None:
    """All scores are alike, so every token halts after the third block; the class token alone goes on."""
    network, D = deit_with(model, NAME, {"gamma": 0.0, "beta": 0.6})  # σ(−0.6) = 0.354, three of them exceed 0.99
    assert static_macs(network, (3, 224, 224)) is None
    expected = outside_blocks(D) + 3 * plain_block(D) + 9 * plain_block(D, 1)
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert counts_of_images(network, torch.zeros(1, 3, 224, 224))[0].macs == expected


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="at most 4"):
        strategy(NAME, {"depth_prior": 5.0}).claims(facts_for(toy()))
    mapped = ModelSpec(model=toy().model, args={**toy().args, "global_pool": "map", "class_token": False})
    with pytest.raises(OptionError, match="pools with `map`"):
        strategy(NAME, {}).claims(facts_for(mapped))
