from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.component.local_attention import window_attention
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


def windowed_by_hand(q: Tensor, k: Tensor, v: Tensor, h: int, w: int, window: int) -> Tensor:
    """Softmax over the keys that each query may see, one query at a time."""
    P = q.shape[2] - h * w
    place = [None] * P + [(i // window, j // window) for i in range(h) for j in range(w)]
    y = torch.zeros_like(v)
    for a in range(len(place)):
        seen = [b for b in range(len(place)) if place[a] is None or place[b] is None or place[a] == place[b]]
        scores = (q[:, :, a : a + 1] * k[:, :, seen]).sum(-1) / q.shape[-1] ** 0.5
        y[:, :, a] = (scores.softmax(-1).unsqueeze(-1) * v[:, :, seen]).sum(2)
    return y


@pytest.mark.parametrize(
    ("h", "w", "window", "num_prefix"), [(4, 4, 2, 1), (5, 7, 3, 2), (4, 6, 4, 0), (3, 3, 3, 1), (2, 5, 4, 5)]
)
def test_windows_equal_attention_to_what_may_be_seen(h: int, w: int, window: int, num_prefix: int) -> None:
    q, k, v = torch.randn(3, 2, 3, num_prefix + h * w, 4, dtype=torch.float64)
    expected = windowed_by_hand(q, k, v, h, w, window)
    torch.testing.assert_close(window_attention(q, k, v, (h, w), window), expected)


def test_gradients_reach_only_what_is_seen() -> None:
    q, k, v = torch.randn(3, 1, 1, 17, 4, dtype=torch.float64).requires_grad_().unbind(0)
    leaf = v.detach().requires_grad_()
    window_attention(q, k, leaf, (4, 4), 2)[:, :, 1].sum().backward()  # the first patch
    assert torch.nonzero(leaf.grad.abs().sum((0, 1, 3))).flatten().tolist() == [0, 1, 2, 5, 6]
    assert torch.autograd.gradcheck(
        lambda t: window_attention(t, t, t, (2, 3), 2), (q[:, :, :7].detach().requires_grad_(),)
    )


def test_one_window_of_everything_is_plain_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 17, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(window_attention(q, k, v, (4, 4), 4), expected)
    torch.testing.assert_close(window_attention(q, k, v, (4, 4), 6), expected)


@pytest.mark.parametrize("variant", ["plain", "qk_norm", "registers", "average_pool", "distilled"])
def test_weights_stay_and_each_block_is_right(variant: str) -> None:
    network = student(toy(variant), strategy("window_attention", {"window": 3, "global_blocks": [1, 3]})).eval()
    plain = student(toy(variant)).eval()
    assert network.network_state().keys() == plain.network_state().keys()
    assert set(network.attention) == {0, 2}
    model, x = network.model, images(2)
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images(2))))
        for i, block in enumerate(model.blocks):
            a, y = block.attn, block.norm1(x)
            if i in (0, 2):
                q, k, v = a.qkv(y).view(*y.shape[:2], 3, 3, 16).permute(2, 0, 3, 1, 4)
                seen = windowed_by_hand(a.q_norm(q), a.k_norm(k), v, 8, 8, 3)
                y = a.proj(seen.transpose(1, 2).flatten(2))
            else:
                y = a(y)
            x = x + y
            x = x + block.mlp(block.norm2(x))
        expected = (
            plain.model.forward_head(model.norm(x)) if variant != "distilled" else model.forward_head(model.norm(x))
        )
        torch.testing.assert_close(network(images(2)).logits, expected, atol=1e-5, rtol=1e-5)


def test_global_blocks_are_the_last_of_each_quarter() -> None:
    facts = facts_for(toy(depth=12))
    assert strategy("window_attention", {"window": 4}).windowed(facts) == (0, 1, 3, 4, 6, 7, 9, 10)
    assert strategy("window_attention", {"window": 4}).windowed(facts_for(toy())) == (0, 1, 2)
    assert strategy("window_attention", {"window": 8}).windowed(facts) == ()
    with pytest.raises(OptionError, match="0 to 3"):
        strategy("window_attention", {"global_blocks": [4]}).claims(facts_for(toy()))


def test_rotation_reaches_windows() -> None:
    rotary = strategy("rotary_position", {"kind": "axial"})
    windows = strategy("window_attention", {"window": 4})
    both, alone = student(toy(), rotary, windows).eval(), student(toy(), rotary).eval()
    turned_first = student(toy(), windows, rotary).eval()
    with torch.no_grad():
        assert torch.equal(both(images()).logits, turned_first(images()).logits)
        assert not torch.allclose(both(images()).logits, alone(images()).logits, atol=1e-4)
        del both.rotate[0]
        assert not torch.allclose(both(images()).logits, turned_first(images()).logits, atol=1e-5)


def test_pruned_heads_are_windowed_too() -> None:
    chosen = strategy("window_attention", {"window": 4}), strategy("structured_pruning", {"ratio": 0.5})
    assert not conflicts(chosen, facts_for(toy()))
    assert_images_do_not_mix(student(toy(), *chosen))


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize("window", [7, 4])
def test_counted_macs_equal_the_closed_form(model: str, window: int) -> None:
    network, D = deit_with(model, "window_attention", {"window": window})
    sides = {7: [7, 7], 4: [4, 4, 4, 2]}[window]
    scores = sum((a * b) ** 2 for a in sides for b in sides) + 196 + 197
    local = 12 * 197 * D**2 + 2 * scores * D
    assert counted_macs(network) == outside_blocks(D) + 4 * plain_block(D) + 8 * local


def test_exports() -> None:
    assert_exports(student(toy(), strategy("window_attention", {"window": 3})))
