from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from strategies import registry
from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.dynamic.elastic_passes import drawn_points
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
    plain_block,
)
from tests.strategies.toys import VARIANTS, facts_for, images, step, strategy, student, teacher, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def network_with(variant: str = "plain", *others: Any, **options: Any) -> Any:
    """In evaluation, with positions far from where they start."""
    network = student(toy(variant), strategy("elastic_resolution", options), *others)
    with torch.no_grad():
        for parameter in network.extras["elastic_resolution"].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.eval()


def by_the_paper(network: Any, image: Tensor, side: int, rate: float, blocks: tuple[int, ...]) -> Tensor:
    """Logits of one image [1, 3, 64, 64] at one operating point, with timm's modules."""
    model = network.model
    P, positions = model.num_prefix_tokens, model.pos_embed
    if side < 64:
        image = torch.nn.functional.interpolate(image, (side, side), mode="bilinear")
        positions = network.extras["elastic_resolution"][str(side)].view(1, -1, 48)
    prefix = [t for t in (model.cls_token, getattr(model, "dist_token", None), model.reg_token) if t is not None]
    x = torch.cat([*prefix, model.patch_embed.proj(image).flatten(2).transpose(1, 2)], 1) + positions
    for i, block in enumerate(model.blocks):
        normed = block.norm1(x)
        x = x + block.ls1(block.attn(normed))
        if i in blocks and rate < 1:
            attn = block.attn
            q, k, _ = attn.qkv(normed).reshape(-1, 3, attn.num_heads, attn.head_dim).unbind(1)
            q, k = attn.q_norm(q), attn.k_norm(k)
            score = sum((k[:, h] @ q[0, h] * attn.scale).softmax(0) for h in range(attn.num_heads))
            best = sorted(range(P, x.shape[1]), key=lambda t: -float(score[t]))
            going = sorted(best[: math.ceil(round(rate * (x.shape[1] - P), 6))])
            x = x[:, [*range(P), *going]]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"average_pool"}))
@pytest.mark.parametrize(("side", "rate"), [(40, 1.0), (48, 0.5), (64, 0.7)])
def test_a_point_equals_the_papers_definition(variant: str, side: int, rate: float) -> None:
    network = network_with(variant, size=side, keep_rate=rate)
    with torch.no_grad():
        expected = torch.cat([by_the_paper(network, image, side, rate, (1, 2, 3)) for image in images(3).split(1)])
        torch.testing.assert_close(network(images(3)).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_network_that_averages_patches_takes_every_size() -> None:
    network = network_with("average_pool", size=48, keep_rates=[1.0])
    assert network(images(2)).num_tokens == [36] * 4
    assert_images_do_not_mix(network)


def test_points_are_drawn_evenly_and_by_the_seed() -> None:
    sizes, rates = (128, 160, 192, 224), (0.5, 0.7, 1.0)
    torch.manual_seed(3)
    drawn = [drawn_points(sizes, rates) for _ in range(600)]
    torch.manual_seed(3)
    assert drawn_points(sizes, rates) == drawn[0]
    for (largest, a), (side, one), (again, b) in drawn:
        assert (largest, one) == (224, 1.0)
        assert side == again
        assert side in (128, 160, 192)
        assert {a, b} <= {0.5, 0.7}
    assert len({(a, side, b) for (_, a), (side, _), (_, b) in drawn}) == 12
    assert sum(points[1][0] == 160 for points in drawn) == pytest.approx(200, abs=50)
    assert drawn_points((224,), (1.0,)) == []
    assert [rate for _, rate in drawn_points((224,), rates)] in ([0.5], [0.7])
    assert [rate for _, rate in drawn_points((128, 224), (1.0,))] == [1.0]


def test_a_step_teaches_the_drawn_points_by_the_largest() -> None:
    acting = strategy("elastic_resolution", {})
    network = network_with().train()
    torch.manual_seed(5)
    out = network(images())
    torch.manual_seed(5)
    points = drawn_points((40, 48, 56, 64), (0.5, 0.7, 1.0))
    plain = copy.deepcopy(network).eval()
    with torch.no_grad():
        answers = [
            torch.cat([by_the_paper(plain, image, *point, (1, 2, 3)) for image in images().split(1)])
            for point in points
        ]
        largest = torch.cat([by_the_paper(plain, image, 64, 1.0, ()) for image in images().split(1)])
    torch.testing.assert_close(out.logits, largest, atol=1e-5, rtol=1e-5)
    others = out.readouts["elastic_resolution"]["others"]
    torch.testing.assert_close(others, torch.stack(answers), atol=1e-5, rtol=1e-5)
    p, q = largest.double().softmax(-1).numpy(), [a.double().softmax(-1).numpy() for a in answers]
    loss = acting.losses(out, None, LABELS)["others"]
    assert loss.item() == pytest.approx(sum((p * np.log(p / q_)).sum(-1).mean() for q_ in q), rel=1e-3)
    by_others, by_largest = torch.autograd.grad(loss, (others, out.logits), allow_unused=True)
    assert by_largest is None
    np.testing.assert_allclose(by_others.numpy(), [(q_ - p) / 6 for q_ in q], atol=1e-6)
    assert out.num_tokens == [65] * 4


def test_exits_and_features_are_those_of_the_largest_pass() -> None:
    others = [strategy("early_exit", {"blocks": [1]}), strategy("feature", {"pairs": [[3, 3]]})]
    network = network_with("plain", *others).train()
    out = network(images())
    plain = student(toy(), *others).train()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    expected = plain(images())
    torch.testing.assert_close(out.features[3], expected.features[3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.exits[1], expected.exits[1], atol=1e-5, rtol=1e-5)


def test_default_sizes_and_settings() -> None:
    def made(**options: Any) -> Any:
        return strategy("elastic_resolution", options)

    assert made().sizes(facts_for(toy()).student) == (40, 48, 56, 64)
    assert made().sizes(facts_for(toy(img_size=224, patch_size=16)).student) == (128, 160, 192, 224)
    assert made().sweep(facts_for(toy())) == (40, 48, 56, 0)
    assert made(size=48).sweep(facts_for(toy())) == (40, 48, 56, 64)
    assert made(size=64).sweep(facts_for(toy())) == (40, 48, 56, 0)


GRIDS = (
    "window_attention",
    "skip_attention",
    "spatial_reduction_attention",
    "linear_attention",
    "conditional_position",
)
TOKENS = ("token_merging", "adaptive_halting", "token_sparsification", "slow_fast_tokens", "attention_relation")


@pytest.mark.parametrize("name", [*GRIDS, *TOKENS])
def test_sizes_alone_go_together_with_what_acts_inside_a_pass(name: str) -> None:
    pair = [strategy(name, registry.load(name).examples[0]), strategy("elastic_resolution", {"keep_rates": [1.0]})]
    assert conflicts(pair, facts_for(toy())) == []
    network = student(toy(), *pair)
    assert torch.isfinite(step(network, pair, images(), LABELS, teacher(*pair)))
    assert all(p.grad is not None for p in network.parameters())


def test_learned_filters_need_one_size() -> None:
    filters = strategy("global_filter", {})
    (reason,) = conflicts([filters, strategy("elastic_resolution", {"keep_rates": [1.0]})], facts_for(toy()))
    assert "`global_filter` needs a patch grid of one size" in reason
    assert (
        conflicts([filters, strategy("elastic_resolution", {"sizes": [64], "keep_rates": [1.0]})], facts_for(toy()))
        == []
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"sizes": [60, 64]}, "multiples of 8, the last 64"),
        ({"sizes": [32, 48]}, "multiples of 8, the last 64"),
        ({"size": 32}, r"does not learn 32 px.*0, or one of \[40, 48, 56, 64\]"),
        ({"blocks": [4]}, "no block 4"),
    ],
)
def test_options_that_do_not_fit_the_network_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        strategy("elastic_resolution", options).claims(facts_for(toy()))


@pytest.mark.parametrize(
    "options", [{"keep_rates": [0.5]}, {"keep_rates": [0.7, 0.5, 1.0]}, {"sizes": [64, 32]}, {"keep_rate": 0.6}]
)
def test_options_that_contradict_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"ascend|among"):
        strategy("elastic_resolution", options)


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize(("side", "rate"), [(128, 1.0), (160, 0.5), (224, 0.7), (224, 1.0)])
def test_counted_macs_equal_the_closed_form(model: str, side: int, rate: float) -> None:
    network, width = deit_with(model, "elastic_resolution", {"size": side, "keep_rate": rate})
    n = (side // 16) ** 2
    total = outside_blocks(width) - (196 - n) * width * 768
    for block in range(12):
        before = n
        if block in (3, 6, 9):
            total += (n + 1) * width  # the class token's row
            n = math.ceil(round(rate * n, 6))
        total += plain_block(width, before + 1) - 8 * (before - n) * width**2
    assert counted_macs(network) == total


def test_exports() -> None:
    assert_exports(network_with(size=48, keep_rate=0.5))
