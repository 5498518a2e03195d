from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.dynamic.idling import class_logits, mean_logits, token_cut
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.toys import VARIANTS, facts_for, images, strategy, student, toy

WITH_CLASS_TOKEN = [v for v in VARIANTS if v != "average_pool"]


def queries_keys_values(attn: Any, x: Tensor) -> list[Tensor]:
    R, N, _ = x.shape
    q, k, v = attn.qkv(x).reshape(R, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    return [attn.q_norm(q), attn.k_norm(k), v]


def masked_block(block: Any, x: Tensor, num: int, prefix: int) -> Tensor:
    """All tokens are computed; idle ones are hidden from the others, and keep their value."""
    q, k, v = queries_keys_values(block.attn, block.norm1(x))
    logits = q @ k.transpose(-2, -1) * block.attn.scale
    scores = logits.mean(1)[:, 0, prefix:]
    works = torch.zeros(x.shape[:2])
    works[:, :prefix] = 1
    for i, row in enumerate(scores):
        works[i, prefix + row.topk(num).indices] = 1
    logits = logits.masked_fill(works[:, None, None] == 0, -math.inf)
    attended = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    x = x + block.ls1(attended) * works.unsqueeze(-1)
    return x + block.ls2(block.mlp(block.norm2(x))) * works.unsqueeze(-1)


@pytest.mark.parametrize("variant", WITH_CLASS_TOKEN)
def test_sitting_out_equals_a_mask(variant: str) -> None:
    options = {"keep_rate": 0.6, "blocks": [0, 1, 3], "stages": 2}
    network, plain = student(toy(variant), strategy("token_idling", options)).eval(), student(toy(variant)).eval()
    num = {0: 39, 1: 39, 3: 24}  # ⌈0.6 · 64⌉ twice, then ⌈0.36 · 64⌉
    with torch.no_grad():
        out, state = network(images()), plain.embed(images())
        P, x = state.num_prefix_tokens, state.x
        for i, block in enumerate(plain.model.blocks):
            x = masked_block(block, x, num.get(i, 64), P)
        torch.testing.assert_close(out.logits, plain._head(type(out)(x), State(x, P)).logits, atol=1e-5, rtol=1e-5)
    assert out.num_tokens == [P + num.get(i, 64) for i in range(4)]


@pytest.mark.parametrize("variant", ["plain", "qk_norm"])
def test_scores_are_mean_logits_of_the_class_token(variant: str) -> None:
    attn = student(toy(variant)).model.blocks[1].attn.eval()
    x = torch.randn(2, 9, 48)
    q, k, _ = queries_keys_values(attn, x)
    expected = (q @ k.transpose(-2, -1) * attn.scale).mean(1)
    torch.testing.assert_close(mean_logits(attn, x, State(x, 1)), expected)
    difference = class_logits(attn, x, State(x, 1)) - expected[:, 0]
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=1e-5)


def test_scores_are_of_turned_queries_and_keys() -> None:
    attn = student(toy()).model.blocks[1].attn.eval()
    x, angle = torch.randn(2, 9, 48), torch.rand(9, 16)
    q, k, _ = queries_keys_values(attn, x)
    expected = (((q * angle) @ (k + angle).transpose(-2, -1)) * attn.scale).mean(1)

    def rotate(query: Tensor, key: Tensor, state: State) -> tuple[Tensor, Tensor]:
        return query * angle, key + angle

    torch.testing.assert_close(mean_logits(attn, x, State(x, 1), rotate), expected)
    torch.testing.assert_close(class_logits(attn, x, State(x, 1), rotate), expected[:, 0])


def test_the_cut_is_the_papers() -> None:
    logits = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    working = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]])
    for i in range(2):
        m, weights = working[i].tolist(), logits[i].softmax(-1).tolist()
        inter = [sum(abs(m[a] - m[b]) * weights[a][b] for b in range(1, 6)) ** 2 for a in range(6)]
        intra = [(sum(m[a] * m[b] * weights[a][b] for b in range(6)) - m[a]) ** 2 for a in range(6)]
        cost = token_cut(logits, working)[i].item()
        assert cost == pytest.approx(sum(inter) / 6 + sum(intra) / 6)
    assert torch.autograd.gradcheck(lambda t: token_cut(t, working), (logits,))
    blocks = torch.full((1, 4, 4), -50.0)
    blocks[0, :2, :2] = blocks[0, 2:, 2:] = 0
    assert token_cut(blocks, torch.tensor([[1, 1, 0, 0]])).item() < 1e-12


def test_training_learns_the_cut() -> None:
    idling = strategy("token_idling", {"keep_rate": 0.5, "blocks": [1, 2], "stages": 1})
    network = student(toy(), idling).train()
    cut = idling.losses(network(images()), None, torch.zeros(6).long())["cut"]
    cut.backward()
    assert cut > 0
    assert network.model.blocks[1].attn.qkv.weight.grad.abs().sum() > 0
    assert idling.weights() == {"cut": 20.0}
    silent = strategy("token_idling", {"cut_weight": 0.0})
    assert silent.losses(student(toy(), silent).train()(images()), None, torch.zeros(6).long()) == {}


def test_idle_tokens_come_back() -> None:
    """Some token idles in one block and works in the next."""
    network = student(toy(), strategy("token_idling", {"keep_rate": 0.3, "blocks": [1, 2], "stages": 1})).train()
    network.taps = frozenset(range(4))
    out = network(images())
    idle = [torch.isclose(out.features[b], out.features[b - 1]).all(-1) for b in (1, 2)]
    assert [int(i.sum(1).min()) for i in idle] == [44, 44]
    assert (idle[0] & ~idle[1]).any(dim=1).all()


def test_default_blocks_and_rates_are_the_papers() -> None:
    rates = strategy("token_idling", {}).rates(12)
    assert list(rates) == list(range(3, 12))
    assert list(rates.values()) == pytest.approx([0.7] * 3 + [0.49] * 3 + [0.343] * 3)
    with pytest.raises(OptionError, match="no block 4"):
        strategy("token_idling", {"blocks": [4]}).claims(facts_for(toy()))


@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_counted_macs_equal_the_closed_form(model: str) -> None:
    facts = facts_of(ModelSpec(model=model))
    idling = strategy("token_idling", {"keep_rate": 0.6})
    network = compose(build_model(ModelSpec(model=model), device="meta"), [idling], Facts(facts)).eval()
    D = facts.embed_dim
    total = 196 * D * 768 + D * 1000
    for block in range(12):
        N = 1 + (math.ceil(196 * 0.6 ** (block // 3)) if block >= 3 else 196)
        total += 12 * N * D * D + 2 * N * N * D
        if block >= 3:
            total += 2 * D * D + 197 * D  # the class token's query, in the tokens' space; its product with all
    assert static_macs(network, (3, 224, 224)) == total


def test_exports() -> None:
    class Logits(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).logits

    network = student(toy(), strategy("token_idling", {})).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Logits(network), (images(4),), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(7)), network(images(7)).logits, atol=1e-5, rtol=1e-5)
