from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from strategies.api import EMBEDDING, Claim, OptionError
from strategies.claims import conflicts
from strategies.component.position_generator import PositionGenerator
from strategies.state import State
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
    plain_block,
)
from tests.strategies.toys import facts_for, images, strategy, student, toy


@pytest.mark.parametrize(("kernel", "num_prefix"), [(3, 1), (5, 0), (1, 2)])
def test_generator_equals_the_papers_definition(kernel: int, num_prefix: int) -> None:
    generator = PositionGenerator(4, kernel, at_zero=False).double()
    x = torch.randn(2, num_prefix + 9, 4, dtype=torch.float64)
    expected = x.clone()
    for row in range(3):
        for column in range(3):
            place = num_prefix + row * 3 + column
            expected[:, place] += generator.conv.bias
            for i in range(kernel):
                for j in range(kernel):
                    r, c = row + i - kernel // 2, column + j - kernel // 2
                    if 0 <= r < 3 and 0 <= c < 3:
                        expected[:, place] += generator.conv.weight[:, 0, i, j] * x[:, num_prefix + r * 3 + c]
    torch.testing.assert_close(generator(State(x, num_prefix)).x, expected)


def test_generator_has_gradients_like_those_of_finite_differences() -> None:
    generator = PositionGenerator(3, 3, at_zero=False).double()
    x = torch.randn(1, 10, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: generator(State(t, 1)).x, (x,))


@pytest.mark.parametrize("variant", ["plain", "registers", "distilled", "average_pool"])
def test_the_network_is_the_papers(variant: str) -> None:
    """No position embedding; block 0, the generator, the other blocks."""
    network = student(toy(variant), strategy("conditional_position", {})).eval()
    assert "pos_embed" not in network.network_state()
    model, P = network.model, network.model.num_prefix_tokens
    with torch.no_grad():
        patches = model.patch_embed(images(2))
        prefix = [t for t in (model.cls_token, getattr(model, "dist_token", None), model.reg_token) if t is not None]
        x = model.norm_pre(torch.cat([*(t.expand(2, -1, -1) for t in prefix), patches], dim=1))
        for i, block in enumerate(model.blocks):
            if i == 1:
                conv = network.extras["conditional_position"]["0"].conv
                picture = x[:, P:].transpose(1, 2).reshape(2, 48, 8, 8)
                x = torch.cat([x[:, :P], x[:, P:] + conv(picture).flatten(2).transpose(1, 2)], dim=1)
            x = block(x)
        torch.testing.assert_close(network(images(2)).logits, model.forward_head(model.norm(x)), atol=1e-5, rtol=1e-5)


def test_without_an_embedding_the_generator_alone_tells_places() -> None:
    """Patches moved around are the same to a network without positions, and not to one with a generator."""
    with_one = student(toy(), strategy("conditional_position", {})).eval()
    without = student(toy(), strategy("conditional_position", {"blocks": []})).eval()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    patches = images(2).unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, order].unflatten(2, (8, 8))
    moved = patches.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(without(moved).logits, without(images(2)).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(with_one(moved).logits, with_one(images(2)).logits, atol=1e-3)


def test_beside_an_embedding_it_starts_without_effect() -> None:
    plain, network = student(toy()), student(toy(), strategy("conditional_position", {"absolute": True}))
    with torch.no_grad():
        assert torch.equal(network.eval()(images()).logits, plain.eval()(images()).logits)
    network.train()(images()).logits.square().sum().backward()
    assert network.extras["conditional_position"]["0"].conv.weight.grad.abs().sum() > 0


def test_claims_on_the_embedding_and_the_grid() -> None:
    facts = facts_for(toy())
    assert Claim(EMBEDDING) in strategy("conditional_position", {}).claims(facts).hides
    assert not strategy("conditional_position", {"absolute": True}).claims(facts).hides
    both = [strategy("conditional_position", {}), strategy("rotary_position", {})]
    assert not conflicts(both, facts)
    assert_images_do_not_mix(student(toy("registers"), *both))
    merging = strategy("token_merging", {"r": 4, "blocks": [0]})
    assert conflicts([strategy("conditional_position", {}), merging], facts)
    behind = strategy("token_merging", {"r": 4, "blocks": [1, 2]})
    assert not conflicts([strategy("conditional_position", {}), behind], facts)


DROPPING = [
    ("adaptive_halting", {"gamma": 0.1, "beta": 0.0, "threshold": 0.6}),
    ("token_sparsification", {"blocks": [1, 2], "keep_rate": 0.5, "token_weight": 0}),
    ("soft_token_pruning", {"blocks": [1, 2], "keep_rate": 0.5}),
    ("slow_fast_tokens", {"start": 1, "group": 2, "keep_rate": 0.5}),
    ("token_idling", {"blocks": [1, 2], "keep_rate": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), DROPPING)
def test_tokens_may_go_at_the_entry_of_the_block_that_a_generator_stands_before(
    name: str, options: dict[str, Any]
) -> None:
    """Positions are told before the entry; one block later they would come too late, except behind idle blocks."""
    dropping, facts = strategy(name, options), facts_for(toy())
    generator = strategy("conditional_position", {"blocks": [0]})
    assert not conflicts([generator, dropping], facts)
    later = conflicts([strategy("conditional_position", {"blocks": [1]}), dropping], facts)
    assert bool(later) == (name != "token_idling")
    assert all("the whole patch grid at block 2" in reason for reason in later)
    merging = strategy("token_merging", {"r": 4, "blocks": [0]})
    assert any("`conditional_position`" in r for r in conflicts([generator, dropping, merging], facts))

    network = student(toy(), generator, dropping)
    seam, seen = network.positions[1], []
    network.positions[1] = lambda state: (seen.append(state), seam(state))[1]
    for training in (True, False):
        with torch.no_grad():
            out = network.train(training)(images())
        state = seen.pop()
        assert tuple(state.x.shape[:2]) == (6, 65)
        assert (state.lengths, state.aside, state.keep, state.source, state.size) == (None,) * 5
        assert torch.isfinite(out.logits).all()
    assert_images_do_not_mix(network)


def test_a_generator_between_idle_blocks_sees_every_patch_again() -> None:
    idling = strategy("token_idling", {"blocks": [0, 1, 2], "keep_rate": 0.5})
    network = student(toy(), strategy("conditional_position", {"blocks": [0, 1]}), idling).eval()
    seen = []
    for block, seam in network.positions.items():
        network.positions[block] = lambda state, seam=seam: (seen.append(state), seam(state))[1]
    with torch.no_grad():
        network(images())
    assert [tuple(state.x.shape[:2]) for state in seen] == [(6, 65), (6, 65)]
    assert [state.aside for state in seen] == [None, None]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"blocks": [3]}, "from 0 to 2"), ({"blocks": [7]}, "from 0 to 2"), ({"blocks": [1, 1]}, "different")],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], allowed: str) -> None:
    with pytest.raises(OptionError, match=allowed):
        strategy("conditional_position", options).claims(facts_for(toy()))


def test_an_even_kernel_has_no_middle() -> None:
    with pytest.raises(ValidationError, match="write an odd number, such as 5"):
        strategy("conditional_position", {"kernel": 4})


@pytest.mark.parametrize("model", DEIT)
def test_counted_macs_equal_the_closed_form(model: str) -> None:
    network, D = deit_with(model, "conditional_position", {})
    assert counted_macs(network) == outside_blocks(D) + 12 * plain_block(D) + 9 * 196 * D


def test_exports() -> None:
    assert_exports(student(toy(), strategy("conditional_position", {})))
