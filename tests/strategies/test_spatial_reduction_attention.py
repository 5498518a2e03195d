from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.component.reduced_attention import Reduction
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
)
from tests.strategies.toys import facts_for, images, strategy, student, toy


def reduced_by_hand(reduction: Reduction, x: Tensor, num_prefix: int) -> Tensor:
    """One linear map of each square of patches, then LayerNorm; outside of the picture there is nothing."""
    side, ratio = math.isqrt(x.shape[1] - num_prefix), reduction.ratio
    tokens = []
    for top in range(0, side, ratio):
        for left in range(0, side, ratio):
            total = reduction.conv.bias.expand(len(x), -1)
            for i in range(ratio):
                for j in range(ratio):
                    if top + i < side and left + j < side:
                        patch = x[:, num_prefix + (top + i) * side + left + j]
                        total = total + patch @ reduction.conv.weight[:, :, i, j].T
            mean, deviation = total.mean(-1, keepdim=True), total.std(-1, keepdim=True, correction=0)
            tokens.append((total - mean) / (deviation**2 + 1e-5).sqrt() * reduction.norm.weight + reduction.norm.bias)
    return torch.cat([x[:, :num_prefix], torch.stack(tokens, 1)], dim=1)


def attention_by_hand(a: Any, reduction: Reduction, x: Tensor, num_prefix: int) -> Tensor:
    """Softmax attention whose keys and values come from the reduced tokens, head by head."""
    coarse, D = reduced_by_hand(reduction, x, num_prefix), x.shape[-1]
    weight, bias, heads = a.qkv.weight, a.qkv.bias, []
    for h in range(a.num_heads):
        rows = [slice(part * D + h * 16, part * D + (h + 1) * 16) for part in range(3)]
        q = a.q_norm(x @ weight[rows[0]].T + bias[rows[0]])
        k, v = a.k_norm(coarse @ weight[rows[1]].T + bias[rows[1]]), coarse @ weight[rows[2]].T + bias[rows[2]]
        heads.append((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
    return a.proj(torch.cat(heads, -1))


@pytest.mark.parametrize("variant", ["plain", "qk_norm", "registers", "average_pool", "layer_scale"])
@pytest.mark.parametrize("ratio", [2, 3])
def test_the_network_is_the_papers(variant: str, ratio: int) -> None:
    network = student(toy(variant), strategy("spatial_reduction_attention", {"ratio": ratio, "blocks": [1, 2]})).eval()
    model, P = network.model, network.model.num_prefix_tokens
    with torch.no_grad():
        for parameter in network.extras.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x = model.norm_pre(model._pos_embed(model.patch_embed(images(2))))
        for i, block in enumerate(model.blocks):
            y = block.norm1(x)
            if i in (1, 2):
                y = attention_by_hand(block.attn, network.extras["spatial_reduction_attention"][str(i)], y, P)
            else:
                y = block.attn(y)
            x = x + block.ls1(y)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        torch.testing.assert_close(network(images(2)).logits, model.forward_head(model.norm(x)), atol=1e-5, rtol=1e-5)


def test_reduction_starts_as_the_normed_mean() -> None:
    reduction = Reduction(6, 2)
    x = torch.randn(1, 17, 6)
    means = x[:, 1:].view(1, 2, 2, 2, 2, 6).mean((2, 4)).view(1, 4, 6)
    torch.testing.assert_close(reduction(x, 1)[:, 1:], torch.nn.functional.layer_norm(means, (6,)))


def test_reduction_has_gradients_like_those_of_finite_differences() -> None:
    reduction = Reduction(3, 2).double()
    x = torch.randn(1, 10, 3, dtype=torch.float64, requires_grad=True)  # 3·3 patches, filled up to 4·4
    assert torch.autograd.gradcheck(lambda t: reduction(t, 1), (x,))


def test_pretrained_weights_stay() -> None:
    plain, network = student(toy()), student(toy(), strategy("spatial_reduction_attention", {}))
    kept = {k: v for k, v in network.network_state().items() if not k.startswith("extras.")}
    assert kept.keys() == plain.network_state().keys()
    assert all(torch.equal(v, plain.network_state()[k]) for k, v in kept.items())


def test_keys_turn_by_the_middle_of_their_patches() -> None:
    reduction = Reduction(3, 2)
    position = torch.tensor([[0.0, 0], *([r, c] for r in range(4) for c in range(4))]).unsqueeze(0)
    middles = [[0, 0], [0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    assert reduction.positions(position, 1).tolist() == [middles]
    rotary = strategy("rotary_position", {})
    assert_images_do_not_mix(student(toy("registers"), rotary, strategy("spatial_reduction_attention", {"ratio": 3})))


def test_scores_depend_on_distance_alone_with_rotation() -> None:
    """All places moved by the same amount: queries and reduced keys turn alike, so nothing changes."""
    chosen = strategy("rotary_position", {"kind": "axial"}), strategy("spatial_reduction_attention", {})
    network = student(toy("average_pool"), *chosen).eval()
    places = network.positions[0]

    class Moved:
        def __call__(self, state: Any) -> Any:
            state = places(state)
            return state.__class__(**{**vars(state), "position": state.position + torch.tensor([3.0, 5.0])})

    with torch.no_grad():
        before = network(images(2)).logits
        network.positions[0] = Moved()
        torch.testing.assert_close(network(images(2)).logits, before, atol=1e-4, rtol=1e-4)


def test_pruned_heads_are_reduced_too() -> None:
    chosen = strategy("spatial_reduction_attention", {}), strategy("structured_pruning", {"ratio": 0.5})
    assert not conflicts(chosen, facts_for(toy()))
    assert_images_do_not_mix(student(toy(), *chosen))


@pytest.mark.parametrize(
    ("options", "allowed"), [({"ratio": 9}, "1 to 8"), ({"blocks": [4]}, "0 to 3"), ({"blocks": [1, 1]}, "different")]
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], allowed: str) -> None:
    with pytest.raises(OptionError, match=allowed):
        strategy("spatial_reduction_attention", options).claims(facts_for(toy()))


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize("ratio", [2, 4])
def test_counted_macs_equal_the_closed_form(model: str, ratio: int) -> None:
    network, D = deit_with(model, "spatial_reduction_attention", {"ratio": ratio})
    reduced = (-(-14 // ratio)) ** 2
    keys = reduced + 1
    block = 2 * 197 * D**2 + 2 * keys * D**2 + 2 * 197 * keys * D + reduced * ratio**2 * D**2 + 8 * 197 * D**2
    assert counted_macs(network) == outside_blocks(D) + 12 * block


def test_exports() -> None:
    assert_exports(student(toy(), strategy("spatial_reduction_attention", {"ratio": 3})))
