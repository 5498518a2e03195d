from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.attention import Look
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.dynamic.selection import attention_received, choose, fuse
from strategies.dynamic.token_reorganization import Reorganize, falling
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.toys import facts_for, images, strategy, student, toy


def example(num_tokens: int, prefix: int, sizes: bool) -> tuple[State, Tensor]:
    """Tokens of three images, and attention of two heads."""
    g = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(3, num_tokens, 5, generator=g, dtype=torch.float64)
    size = torch.randint(1, 5, (3, num_tokens, 1), generator=g).double() if sizes else None
    position = torch.rand(3, num_tokens, 2, generator=g, dtype=torch.float64)
    attention = torch.randn(3, 2, num_tokens, generator=g, dtype=torch.float64).softmax(-1)
    return State(x, prefix, size=size, position=position), attention


@pytest.mark.parametrize(("num_tokens", "prefix", "keep_rate"), [(9, 1, 0.5), (12, 2, 0.7), (11, 5, 0.34)])
@pytest.mark.parametrize("sizes", [False, True])
def test_choosing_and_fusing_equal_the_papers_definition(
    num_tokens: int, prefix: int, keep_rate: float, sizes: bool
) -> None:
    state, attention = example(num_tokens, prefix, sizes)
    after = Reorganize(keep_rate, True)(state, Look(class_attention=attention), True)
    num_patches = num_tokens - prefix
    for i in range(3):
        score = [sum(attention[i, h, t].item() for h in range(2)) / 2 for t in range(num_tokens)]
        best = sorted(range(prefix, num_tokens), key=lambda t: -score[t])
        going, waiting = best[: math.ceil(keep_rate * num_patches)], best[math.ceil(keep_rate * num_patches) :]
        going = [*range(prefix), *sorted(going)]
        assert torch.equal(after.x[i, :-1], state.x[i, going])
        fused = sum(score[t] * state.x[i, t] for t in waiting)
        torch.testing.assert_close(after.x[i, -1], fused)
        where = sum(score[t] * state.position[i, t] for t in waiting) / sum(score[t] for t in waiting)
        torch.testing.assert_close(after.position[i, -1], where)
        assert torch.equal(after.position[i, :-1], state.position[i, going])
        if sizes:
            assert after.size[i, -1].item() == sum(state.size[i, t].item() for t in waiting)
            assert after.size[i].sum() == state.size[i].sum()
        assert after.source[i].tolist() == [going.index(t) if t in going else len(going) for t in range(num_tokens)]
    assert (after.size is None) == (not sizes)


def test_gradients_reach_tokens_and_attention() -> None:
    state, attention = example(9, 1, False)
    choice = choose(attention_received(attention, 1), 4, 1)

    def fused(x: Tensor, weights: Tensor) -> Tensor:
        return fuse(State(x, 1), choice, weights, False).x

    inputs = (state.x.requires_grad_(), attention_received(attention, 1).requires_grad_())
    assert torch.autograd.gradcheck(fused, inputs)


def tokens_after(options: dict[str, Any], variant: str = "plain") -> list[int]:
    with torch.no_grad():
        return student(toy(variant), strategy("token_reorganization", options)).eval()(images(2)).num_tokens


def test_the_fused_token_counts_as_a_patch() -> None:
    assert tokens_after({"keep_rate": 0.7}) == [65, 1 + 45 + 1, 1 + 33 + 1, 1 + 24 + 1]
    assert tokens_after({"keep_rate": 0.5, "fuse": False, "blocks": [0, 3]}) == [33, 33, 33, 17]
    assert tokens_after({"keep_rate": 0.5}, "registers") == [69, 5 + 33, 5 + 18, 5 + 10]
    assert tokens_after({"keep_rate": 0.99, "blocks": [0]}) == [65] * 4  # fusing one token saves none


def test_the_rate_falls_in_declared_levels() -> None:
    rates = [falling(0.5, 0.4, 4, step / 100) for step in range(101)]
    assert rates[0] == 1
    assert len(set(rates)) == 5
    assert rates == sorted(rates, reverse=True)
    assert rates[20] == pytest.approx(0.75)  # half of the way: cos(π/2) = 0
    assert set(rates[40:]) == {0.5}
    assert falling(0.3, 0.0, 8, 0.0) == 0.3
    acting = strategy("token_reorganization", {"keep_rate": 0.5, "warmup": 0.4, "levels": 4})
    network = student(toy(), acting)
    for progress, last in ((0.0, 65), (0.2, 1 + 29 + 1), (0.4, 11)):
        acting.at(network, progress)
        assert network.train()(images(2)).num_tokens[-1] == last


def test_fused_patches_are_found_at_the_fused_token() -> None:
    acting = strategy("token_reorganization", {"keep_rate": 0.5})
    network = student(toy(), acting, strategy("feature", {"pairs": [[0, 0], [3, 3]]})).train()
    out = network(images(2))
    assert out.num_tokens[-1] == 11
    for i in range(2):
        values, places = out.features[3][i].unique(dim=0, return_inverse=True)
        assert len(values) == 11
        assert (places == places[0]).sum() == 1  # the class token is nobody else's place


@pytest.mark.parametrize(("blocks", "problem"), [([4], "no block 4"), ([1, 1], "twice")])
def test_blocks_that_do_not_fit_are_refused(blocks: list[int], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        strategy("token_reorganization", {"blocks": blocks}).claims(facts_for(toy()))


@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
@pytest.mark.parametrize(("keep_rate", "fuse_rest"), [(0.7, True), (0.5, False), (1.0, True)])
def test_counted_macs_equal_the_closed_form(model: str, keep_rate: float, fuse_rest: bool) -> None:
    facts = facts_of(ModelSpec(model=model))
    acting = strategy("token_reorganization", {"keep_rate": keep_rate, "fuse": fuse_rest})
    network = compose(build_model(ModelSpec(model=model), device="meta"), [acting], Facts(facts)).eval()
    n, D = 196, facts.embed_dim
    total = 196 * D * 768 + D * 1000
    for block in range(12):
        N = n + 1
        total += 4 * N * D * D + 2 * N * N * D
        if block in (3, 6, 9) and keep_rate < 1:
            total += N * D + (n * D if fuse_rest else 0)  # the class token's row, the weighted sum
            n = math.ceil(round(keep_rate * n, 6)) + fuse_rest
        total += 8 * (n + 1) * D * D
    assert static_macs(network, (3, 224, 224)) == total


def test_exports_and_compiles() -> None:
    class Logits(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).logits

    network = student(toy(), strategy("token_reorganization", {})).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Logits(network), (images(4),), dynamic_shapes={"x": {0: batch}})
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = network(images(7)).logits
        torch.testing.assert_close(program.module()(images(7)), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled(images(7)).logits, expected, atol=1e-5, rtol=1e-5)
