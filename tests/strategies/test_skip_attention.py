from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.component.attention_reuse import Reuse, channel_attention
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


def reuse_by_hand(phi: Reuse, attended: Tensor, num_prefix: int) -> Tensor:
    """Φ of the paper, patch by patch."""
    y = F.gelu(attended[:, num_prefix:] @ phi.expand.weight.T + phi.expand.bias)
    side = math.isqrt(y.shape[1])
    around = torch.zeros_like(y)
    for row in range(side):
        for column in range(side):
            total = phi.depthwise.bias.expand(len(y), -1)
            for i in range(-2, 3):
                for j in range(-2, 3):
                    r, c = row + i, column + j
                    if 0 <= r < side and 0 <= c < side:
                        total = total + phi.depthwise.weight[:, 0, i + 2, j + 2] * y[:, r * side + c]
            around[:, row * side + column] = total
    y = F.gelu(around) @ phi.reduce.weight.T + phi.reduce.bias
    mean = y.mean(1)
    left, right = F.pad(mean, (1, 0))[:, :-1], F.pad(mean, (0, 1))[:, 1:]
    a, b, c = phi.channels.weight[0, 0]
    gate = torch.sigmoid(a * left + b * mean + c * right)
    return torch.cat([attended[:, :num_prefix], y * gate.unsqueeze(1)], dim=1)


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_reuse_equals_the_papers_definition(num_prefix: int) -> None:
    phi = Reuse(6).double()
    attended = torch.randn(2, num_prefix + 16, 6, dtype=torch.float64)
    state = State(attended, num_prefix, attended=attended)
    torch.testing.assert_close(phi(None, attended, state), reuse_by_hand(phi, attended, num_prefix))


def test_reuse_has_gradients_like_those_of_finite_differences() -> None:
    phi = Reuse(3).double()
    attended = torch.randn(1, 10, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: phi(None, t, State(t, 1, attended=t)), (attended,))


def test_channel_attention_of_no_weight_halves() -> None:
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(channel_attention(x, torch.zeros(1, 1, 3)), x / 2)


@pytest.mark.parametrize("variant", ["plain", "layer_scale", "distilled", "registers", "average_pool"])
def test_the_network_is_the_papers(variant: str) -> None:
    """Blocks 1 and 2 reuse block 0's attention, one after the other; everything else is timm's."""
    network = student(toy(variant), strategy("skip_attention", {"blocks": [1, 2]})).eval()
    model, P = network.model, network.model.num_prefix_tokens
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images(2))))
        attended = None
        for i, block in enumerate(model.blocks):
            if i in (1, 2):
                attended = reuse_by_hand(network.extras["skip_attention"][str(i)], attended, P)
            else:
                attended = block.attn(block.norm1(x))
            x = x + block.ls1(attended)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        torch.testing.assert_close(network(images(2)).logits, model.forward_head(model.norm(x)), atol=1e-5, rtol=1e-5)


def test_skipped_weights_leave_the_network() -> None:
    plain, network = student(toy()), student(toy(), strategy("skip_attention", {"blocks": [2]}))
    gone = {k for k in plain.network_state() if k.startswith(("blocks.2.attn.", "blocks.2.norm1."))}
    assert plain.network_state().keys() - network.network_state().keys() == gone
    assert len(gone) == 6
    for name in ("blocks.2.mlp.fc1.weight", "blocks.1.attn.qkv.weight", "pos_embed"):
        assert torch.equal(network.network_state()[name], plain.network_state()[name])


def test_images_that_leave_take_their_attention_along() -> None:
    exits = strategy("early_exit", {"blocks": [1]})
    network = student(toy(), strategy("skip_attention", {"blocks": [1, 2]}), exits)
    with torch.no_grad():
        confidence = network.train()(images(4)).exits[1].softmax(-1).amax(-1)
        network.depth[1].threshold.fill_(confidence.median())
        assert sorted(network.eval()(images(4)).exit_block.tolist()) == [1, 1, 3, 3]
    assert_images_do_not_mix(network)


def test_blocks_scale_with_depth() -> None:
    for depth, expected in (
        (12, range(3, 9)),
        (4, range(1, 3)),
        (24, range(6, 18)),
        (2, range(1, 1)),
        (3, range(1, 2)),
    ):
        assert strategy("skip_attention", {}).skipped(depth) == tuple(expected)


@pytest.mark.parametrize(("blocks", "allowed"), [([0, 1], "from 1 to 3"), ([4], "from 0 to 3"), ([1, 1], "different")])
def test_blocks_that_cannot_skip_are_refused(blocks: list[int], allowed: str) -> None:
    with pytest.raises(OptionError, match=allowed):
        strategy("skip_attention", {"blocks": blocks}).claims(facts_for(toy()))


def test_merging_before_it_is_refused_and_behind_it_is_not() -> None:
    skip = strategy("skip_attention", {"blocks": [1, 2]})
    early = conflicts([skip, strategy("token_merging", {"r": 4, "blocks": [0]})], facts_for(toy()))
    assert early
    assert all("`skip_attention`" in reason and "`token_merging`" in reason for reason in early)
    assert not conflicts([skip, strategy("token_merging", {"r": 4, "blocks": [3]})], facts_for(toy()))


@pytest.mark.parametrize("model", DEIT)
def test_counted_macs_equal_the_closed_form(model: str) -> None:
    network, D = deit_with(model, "skip_attention", {})
    skipping = 4 * 196 * D**2 + 196 * 25 * 2 * D + 3 * D + 8 * 197 * D**2
    assert counted_macs(network) == outside_blocks(D) + 6 * plain_block(D) + 6 * skipping


def test_exports() -> None:
    assert_exports(student(toy(), strategy("skip_attention", {})))
