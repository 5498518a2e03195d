from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies import ragged
from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.component.additive_attention import Additive, pooled_query
from strategies.component.kernel_attention import Elu, Focused, focused_features, kernel_attention
from strategies.state import State
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
)
from tests.strategies.toys import facts_for, images, strategy, student, toy


def phi(kind: str, x: list[float]) -> list[float]:
    """Features of one query or key, in plain Python."""
    if kind == "elu":
        return [v + 1 if v > 0 else math.exp(v) for v in x]
    r = [max(v, 0.0) for v in x]
    length, cubed = math.sqrt(sum(v * v for v in r)), math.sqrt(sum(v**6 for v in r))
    return [v**3 * length / cubed for v in r]


def by_hand(kind: str, attn: Any, x: Tensor) -> Tensor:
    """Every query with every key, one head, one image: [N, D] → heads' outputs [N, D]."""
    heads, E = [], attn.head_dim
    for h in range(attn.num_heads):
        rows = [slice((part * attn.num_heads + h) * E, (part * attn.num_heads + h + 1) * E) for part in range(3)]
        q, k, v = (x @ attn.qkv.weight[r].T + attn.qkv.bias[r] for r in rows)
        keys, out = [phi(kind, row) for row in k.tolist()], []
        for row in q.tolist():
            weights = [sum(a * b for a, b in zip(phi(kind, row), key, strict=True)) for key in keys]
            out.append([sum(w * v[j, e].item() for j, w in enumerate(weights)) / sum(weights) for e in range(E)])
        heads.append(torch.tensor(out, dtype=x.dtype))
    return torch.cat(heads, dim=1)


def attention_and_tokens(num: int = 10) -> tuple[Any, Tensor]:
    torch.manual_seed(3)
    return student(toy()).model.blocks[0].attn.eval(), torch.randn(2, num, 48)


def test_elu_equals_the_papers_definition() -> None:
    attn, x = attention_and_tokens()
    expected = torch.stack([attn.proj(by_hand("elu", attn, image)) for image in x])
    torch.testing.assert_close(Elu()(attn, x, State(x, 1)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_focused_equals_the_papers_definition(num_prefix: int) -> None:
    attn, x = attention_and_tokens(num_prefix + 9)
    seam = Focused(16)
    y = torch.stack([by_hand("focused", attn, image) for image in x])
    values = (x @ attn.qkv.weight[96:].T + attn.qkv.bias[96:])[:, num_prefix:].view(2, 3, 3, 3, 16)
    for row in range(3):
        for column in range(3):
            near = seam.conv.bias.expand(2, 3, -1)
            for r in range(3):
                for c in range(3):
                    near = near + seam.conv.weight[:, 0, r - row + 2, c - column + 2] * values[:, r, c]
            y[:, num_prefix + row * 3 + column] += near.flatten(1)
    torch.testing.assert_close(seam(attn, x, State(x, num_prefix)), attn.proj(y), atol=1e-4, rtol=1e-4)


def test_focused_features_keep_the_length_and_are_sharper() -> None:
    x = torch.tensor([1.0, 2.0, -3.0])
    y = focused_features(x)
    torch.testing.assert_close(y.norm(), torch.tensor(5.0).sqrt())
    torch.testing.assert_close(y[1] / y[0], torch.tensor(8.0))
    assert y[2] == 0
    assert torch.equal(focused_features(-torch.ones(3)), torch.zeros(3))


def test_additive_equals_the_papers_definition() -> None:
    attn, x = attention_and_tokens()
    seam = Additive(attn)
    with torch.no_grad():
        seam.transform.weight.add_(0.1 * torch.randn(48, 48))
    q, k = (x @ attn.qkv.weight[r].T + attn.qkv.bias[r] for r in (slice(48), slice(48, 96)))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    expected = torch.zeros_like(x)
    for image in range(2):
        alpha = [(q[image, i] @ seam.w).item() / math.sqrt(48) for i in range(10)]
        length = math.sqrt(sum(a * a for a in alpha))
        pooled = sum(a / length * q[image, i] for i, a in enumerate(alpha))
        for i in range(10):
            expected[image, i] = seam.proj(seam.transform(pooled * k[image, i]) + q[image, i])
    torch.testing.assert_close(seam(None, x, State(x, 1)), expected)


def test_gradients_are_like_those_of_finite_differences() -> None:
    x = torch.rand(3, 1, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    count = torch.rand(1, 5, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: kernel_attention(*t.unbind(0), count), (x,))
    focus = torch.rand(4, 3, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(focused_features, (focus.requires_grad_(),))
    torch.manual_seed(0)
    query, w = torch.randn(2, 5, 4), torch.randn(4, requires_grad=True)
    pooled_query(query, w)[0, 0, 1].backward()
    step = torch.zeros(4)
    step[2] = 1e-2
    difference = (pooled_query(query, w + step) - pooled_query(query, w - step))[0, 0, 1] / 2e-2
    torch.testing.assert_close(w.grad[2], difference.detach(), atol=1e-3, rtol=1e-2)


def seam_of(kind: str, attn: Any) -> Any:
    return Elu() if kind == "elu" else Additive(attn)


@pytest.mark.parametrize("kind", ["elu", "additive"])
def test_a_token_of_size_s_counts_as_s_tokens(kind: str) -> None:
    attn, x = attention_and_tokens(4)
    seam, size = seam_of(kind, attn), torch.tensor([1.0, 3.0, 1.0, 2.0]).view(1, 4, 1).expand(2, -1, -1)
    repeated = x[:, [0, 1, 1, 1, 2, 3, 3]]
    merged = seam(attn, x, State(x, 1, size=size))
    torch.testing.assert_close(merged, seam(attn, repeated, State(repeated, 1))[:, [0, 1, 4, 5]], atol=1e-5, rtol=1e-5)
    plain = seam(attn, x, State(x, 1, size=size, proportional_attention=False))
    assert torch.equal(plain, seam(attn, x, State(x, 1)))


@pytest.mark.parametrize("kind", ["elu", "additive"])
def test_packed_masked_and_dropped_tokens_agree(kind: str) -> None:
    attn, x = attention_and_tokens(7)
    seam = seam_of(kind, attn)
    alive = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 0, 1]]).bool()
    size = torch.randint(1, 4, (2, 7, 1)).float()
    for sizes in (None, size):
        state = State(x, 1, size=sizes)
        packed = ragged.pack(state, alive)
        from_packed = seam(attn, packed.x, packed)[0]
        masked = State(x, 1, size=sizes, keep=alive.unsqueeze(-1).float())
        from_masked = seam(attn, x, masked)[alive]
        dropped = [
            seam(attn, x[i : i + 1, alive[i]], State(x[i : i + 1, alive[i]], 1, size=s))[0]
            for i, s in enumerate([None, None] if sizes is None else [sizes[j : j + 1, alive[j]] for j in range(2)])
        ]
        torch.testing.assert_close(from_packed, torch.cat(dropped), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(from_packed, from_masked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["elu", "additive", "focused"])
@pytest.mark.parametrize("variant", ["qk_norm", "distilled", "registers", "average_pool", "layer_scale"])
def test_it_runs_on_every_kind_of_network(kind: str, variant: str) -> None:
    assert_images_do_not_mix(student(toy(variant), strategy("linear_attention", {"kind": kind})))


def test_which_weights_stay() -> None:
    plain = student(toy()).network_state().keys()
    for kind in ("elu", "focused", "additive"):
        network = student(toy(), strategy("linear_attention", {"kind": kind, "blocks": [1]}))
        gone = {k for k in plain if k.startswith("blocks.1.attn.")} if kind == "additive" else set()
        assert plain - network.network_state().keys() == gone
    before, after = student(toy()).model.blocks[1].attn, network.extras["linear_attention"]["1"]
    assert torch.equal(torch.cat([after.query.weight, after.key.weight]), before.qkv.weight[:96])
    assert torch.equal(after.proj.weight, before.proj.weight)


def test_merging_combines_at_other_blocks_and_pruning_where_weights_stay() -> None:
    facts, merging = facts_for(toy()), strategy("token_merging", {"r": 6, "blocks": [0]})
    for kind, fits in (("elu", True), ("additive", True), ("focused", False)):
        linear = strategy("linear_attention", {"kind": kind, "blocks": [1, 2]})
        assert bool(conflicts([linear, merging], facts)) is not fits
        if fits:
            assert_images_do_not_mix(student(toy(), linear, merging))
    pruning = strategy("structured_pruning", {"ratio": 0.5})
    for kind, fits in (("elu", True), ("focused", True), ("additive", False)):
        linear = strategy("linear_attention", {"kind": kind})
        assert bool(conflicts([linear, pruning], facts)) is not fits
        if fits:
            assert_images_do_not_mix(student(toy(), linear, pruning))
    with pytest.raises(OptionError, match="0 to 3"):
        strategy("linear_attention", {"blocks": [4]}).claims(facts)


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize("kind", ["elu", "focused", "additive"])
def test_counted_macs_equal_the_closed_form(model: str, kind: str) -> None:
    network, D = deit_with(model, "linear_attention", {"kind": kind})
    N = 197
    attention = {
        "elu": 4 * N * D**2 + 2 * N * D * 64,
        "focused": 4 * N * D**2 + 2 * N * D * 64 + 25 * 196 * D,
        "additive": 4 * N * D**2,
    }[kind]
    assert counted_macs(network) == outside_blocks(D) + 12 * (attention + 8 * N * D**2)


@pytest.mark.parametrize("kind", ["elu", "focused", "additive"])
def test_exports(kind: str) -> None:
    assert_exports(student(toy(), strategy("linear_attention", {"kind": kind})))


def test_half_precision_sums_stay_exact_enough() -> None:
    network = student(toy(), strategy("linear_attention", {})).eval()
    with torch.no_grad():
        full = network(images()).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images()).logits
    assert (half - full).abs().max() < 0.05 * full.abs().max()
