from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.toys import VARIANTS, facts_for, images, strategy, student, toy

WITH_CLASS_TOKEN = [v for v in VARIANTS if v != "average_pool"]


def block_on(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """One image: tokens after the block, and the class token's attention, summed over heads."""
    attn, normed = block.attn, block.norm1(x)
    q, k, v = attn.qkv(normed).reshape(len(x), 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
    weights = (attn.q_norm(q) @ attn.k_norm(k).transpose(-2, -1) * attn.scale).softmax(-1)
    x = x + block.ls1(attn.proj((weights @ v).transpose(0, 1).flatten(1)))
    return x + block.ls2(block.mlp(block.norm2(x))), weights[:, 0].sum(0)


def by_hand(model: Any, x: Tensor, P: int, num: int, choices: list[int], representative: bool) -> Tensor:
    """One image, token by token, as section 3 of the paper says."""
    score = torch.zeros(len(x))
    slow = list(range(P, len(x)))
    stand_in = start = None
    for i, block in enumerate(model.blocks):
        if i in choices:
            if representative and stand_in is not None:
                fast = [t for t in range(P, len(x)) if t not in slow]
                x[fast] += stand_in - start
            slow = sorted(sorted(range(P, len(x)), key=lambda t: -score[t].item())[:num])
            fast = [t for t in range(P, len(x)) if t not in slow]
            start = stand_in = sum(score[t] * x[t] for t in fast) / sum(score[t] for t in fast)
        rows = [*range(P), *slow]
        several = representative and i >= choices[0]
        y, attention = block_on(block, torch.cat([x[rows], stand_in[None]]) if several else x[rows])
        x[rows] = y[: len(rows)]
        stand_in = y[-1] if several else stand_in
        for row, t in enumerate(rows):
            score[t] = attention[row] if i < choices[0] else (score[t] + attention[row]) / 2
    if representative:
        fast = [t for t in range(P, len(x)) if t not in slow]
        x[fast] += stand_in - start
    return x


@pytest.mark.parametrize(
    ("variant", "representative"), [*((v, False) for v in WITH_CLASS_TOKEN), ("plain", True), ("registers", True)]
)
def test_groups_equal_the_papers_definition(variant: str, representative: bool) -> None:
    options = {"keep_rate": 0.4, "start": 1, "group": 2, "representative": representative, "head": "own"}
    network, plain = student(toy(variant), strategy("slow_fast_tokens", options)).eval(), student(toy(variant)).eval()
    with torch.no_grad():
        out, state = network(images(3)), plain.embed(images(3))
        P = state.num_prefix_tokens
        x = torch.stack([by_hand(plain.model, one.clone(), P, 26, [1, 3], representative) for one in state.x])
        torch.testing.assert_close(out.logits, plain._head(type(out)(x), State(x, P)).logits, atol=1e-5, rtol=1e-5)
    assert out.num_tokens == [P + 64] + [P + 26 + representative] * 3


@pytest.mark.parametrize("variant", WITH_CLASS_TOKEN)
def test_the_classifier_reads_the_mean_of_all_patches(variant: str) -> None:
    acting = strategy("slow_fast_tokens", {"keep_rate": 1.0})
    network, plain = student(toy(variant), acting).eval(), student(toy(variant)).eval()
    final = []
    plain.model.norm.register_forward_hook(lambda _, __, y: final.append(y))
    with torch.no_grad():
        logits, own = network(images(3)).logits, plain(images(3))
    model, P = plain.model, plain.model.num_prefix_tokens
    expected = model.head(model.fc_norm(final[0][:, P:].mean(1)))
    if own.distillation_logits is not None:
        expected = (expected + own.distillation_logits) / 2
    torch.testing.assert_close(logits, expected)
    network.train()(images(3))


def test_half_of_the_loss_is_the_class_tokens() -> None:
    acting = strategy("slow_fast_tokens", {})
    network = student(toy(), acting).train()
    target = torch.tensor([0, 3, 9])
    final = []
    network.model.norm.register_forward_hook(lambda _, __, y: final.append(y))
    terms = acting.losses(network(images(3)), None, target)
    head = network.extras["slow_fast_tokens"].fc
    torch.testing.assert_close(terms["class_head"], F.cross_entropy(head(final[0][:, 0]), target))
    assert acting.weights() == {"task": 0.5, "class_head": 0.5}
    assert strategy("slow_fast_tokens", {"head": "own"}).weights() == {}


def test_beside_a_distillation_token_the_patches_answer_for_the_class() -> None:
    acting, token = strategy("slow_fast_tokens", {}), strategy("distillation_token", {})
    network = student(toy(), acting, token).eval()
    final = []
    network.model.norm.register_forward_hook(lambda _, __, y: final.append(y))
    with torch.no_grad():
        out = network(images(3))
    patches = network.model.head(final[0][:, 2:].mean(1))
    torch.testing.assert_close(out.logits, (patches + out.distillation_logits) / 2)


def test_default_groups_are_the_papers() -> None:
    assert strategy("slow_fast_tokens", {}).choices(12) == (4, 8)
    assert strategy("slow_fast_tokens", {"start": 3, "group": 5}).choices(12) == (3, 8)
    assert strategy("slow_fast_tokens", {"keep_rate": 1.0}).choices(12) == ()
    with pytest.raises(OptionError, match=r"slow_fast_tokens\.start: there is no block 4.*from 1 to 3"):
        strategy("slow_fast_tokens", {"start": 4}).claims(facts_for(toy()))


def test_features_of_fast_tokens_stand_at_their_places() -> None:
    acting = strategy("slow_fast_tokens", {"keep_rate": 0.5, "start": 2, "group": 2})
    network = student(toy(), acting, strategy("feature", {"pairs": [[1, 0], [2, 1], [3, 3]]})).train()
    features = network(images(2)).features
    for before, after in ((1, 2), (2, 3)):
        assert torch.isclose(features[before], features[after]).all(-1).sum(1).tolist() == [32, 32]


@pytest.mark.parametrize("representative", [False, True])
@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_counted_macs_equal_the_closed_form(model: str, representative: bool) -> None:
    facts = facts_of(ModelSpec(model=model))
    acting = strategy("slow_fast_tokens", {"keep_rate": 0.5, "representative": representative})
    network = compose(build_model(ModelSpec(model=model), device="meta"), [acting], Facts(facts)).eval()
    D = facts.embed_dim
    total = 196 * D * 768 + 2 * D * 1000  # timm's own answer is there too
    for block in range(12):
        N = 197 if block < 4 else 99 + representative
        total += 12 * N * D * D + 2 * N * N * D + (N * D if 3 <= block < 8 else 0)
    total += 2 * 2 * 98 * D * representative  # two means in each of two groups
    assert static_macs(network, (3, 224, 224)) == total


def test_exports() -> None:
    class Logits(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).logits

    network = student(toy(), strategy("slow_fast_tokens", {"representative": True})).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Logits(network), (images(4),), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(7)), network(images(7)).logits, atol=1e-5, rtol=1e-5)
