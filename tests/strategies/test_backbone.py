from __future__ import annotations

import copy

import pytest
import timm
import torch

from strategies.attention import attend, masked_softmax
from strategies.backbone import TapStudent
from strategies.compose import student_of
from strategies.state import State
from tests.strategies.toys import VARIANTS, images, strategy, student, toy


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_strategies_it_is_timms_network_bit_for_bit(variant: str) -> None:
    network = student(toy(variant))
    x = images()
    with torch.no_grad():
        assert torch.equal(network.eval()(x).logits, network.model(x))
    assert (
        network.network_state().keys() == timm.create_model(toy(variant).model, **toy(variant).args).state_dict().keys()
    )


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "distilled"])
def test_training_pass_and_gradients_are_timms_bit_for_bit(variant: str) -> None:
    network = student(toy(variant, drop_path_rate=0.2, proj_drop_rate=0.1)).train()
    x = images()
    gradients = []
    for forward in (lambda: network(x).logits, lambda: network.model(x)):
        torch.manual_seed(3)
        network.zero_grad()
        forward().square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_distilled_training_pass_hands_out_both_heads() -> None:
    network = student(toy("distilled")).train()
    network.model.set_distilled_training(True)
    out, (cls, dist) = network(images()), network.model(images())
    assert torch.equal(out.logits, (cls + dist) / 2)
    assert torch.equal(out.distillation_logits, dist)
    network.split_heads = True
    assert torch.equal(network(images()).logits, cls)


def test_hierarchical_network_gives_logits_and_taps() -> None:
    torch.manual_seed(0)
    network = student_of(timm.create_model("resnet18", num_classes=10)).eval()
    assert isinstance(network, TapStudent)
    x = images(2)
    with torch.no_grad():
        assert torch.equal(network(x).logits, network.model(x))
        network.taps, network.always_tap = frozenset({1, 3}), True
        out = network(x)
        torch.testing.assert_close(out.logits, network.model(x))
    assert set(out.features) == {1, 3}
    assert out.features[3].dim() == 4


@pytest.mark.parametrize("variant", ["plain", "qk_norm"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_with_bias_and_keys_equals_its_definition(variant: str, fused: bool) -> None:
    attn = student(toy(variant)).model.blocks[0].attn.eval()
    attn.fused_attn = fused
    x, size = torch.randn(2, 7, 48), torch.randint(1, 5, (2, 7, 1)).float()
    bias = size.log().view(2, 1, 1, 7)
    want = frozenset({"keys", "class_attention", "projections"})
    y, look = attend(attn, x, State(x, 1, size=size), want=want)
    projected = x @ attn.qkv.weight.T + attn.qkv.bias
    heads = []
    for h in range(3):
        q, k, v = (projected[..., part * 48 + h * 16 : part * 48 + (h + 1) * 16] for part in range(3))
        q, k = attn.q_norm(q), attn.k_norm(k)
        torch.testing.assert_close(look.keys[:, h], k)
        weights = torch.softmax(q @ k.transpose(1, 2) / 4 + bias[:, 0], dim=-1)
        torch.testing.assert_close(look.class_attention[:, h], weights[:, 0])
        torch.testing.assert_close(look.projections[:, :, h], torch.stack([q, k, v]))
        heads.append(weights @ v)
    torch.testing.assert_close(y, attn.proj(torch.cat(heads, dim=-1)))
    assert torch.equal(attend(attn, x, State(x, 1))[0], attn(x))


def test_masked_tokens_are_seen_by_nobody_but_themselves() -> None:
    attn = student(toy()).model.blocks[0].attn.eval()
    x = torch.randn(1, 6, 48)
    kept = [0, 2, 5]
    keep = torch.zeros(1, 6, 1)
    keep[:, kept] = 1
    y, look = attend(attn, x, State(x, 1, keep=keep), want=frozenset({"class_attention"}))
    alone = x[:, kept]
    torch.testing.assert_close(y[:, kept], attn(alone), atol=1e-4, rtol=1e-4)
    assert look.class_attention[..., [1, 3, 4]].max() < 1e-5
    with_itself = x[:, [0, 1, 2, 5]]
    torch.testing.assert_close(y[:, 1], attn(with_itself)[:, 1], atol=1e-4, rtol=1e-4)


def test_a_mask_has_gradients_like_those_of_finite_differences() -> None:
    logits, keep = torch.randn(2, 2, 5, 5, dtype=torch.float64), torch.rand(2, 5, 1, dtype=torch.float64)

    def mean_of(keep: torch.Tensor) -> torch.Tensor:
        return (masked_softmax(logits, keep) * torch.arange(5.0)).square().mean()

    keep.requires_grad_()
    mean_of(keep).backward()
    step = torch.zeros_like(keep)
    step[1, 3] = 1e-2
    with torch.no_grad():
        difference = (mean_of(keep + step) - mean_of(keep - step)) / 2e-2
    torch.testing.assert_close(keep.grad[1, 3, 0], difference.double(), rtol=1e-3, atol=1e-5)


def test_selecting_images_compacts_everything_that_flows() -> None:
    state = State(
        torch.arange(24.0).view(4, 3, 2), 1, size=torch.rand(4, 3, 1), source=torch.tensor([[0, 1, 2, 1]] * 4)
    )
    once = state.select(torch.tensor([1, 2, 3]))
    twice = once.select(torch.tensor([0, 2]))
    assert twice.image.tolist() == [1, 3]
    assert torch.equal(twice.x, state.x[[1, 3]])
    assert torch.equal(twice.size, state.size[[1, 3]])
    assert torch.equal(twice.full_grid(), state.x[[1, 3]][:, [0, 1, 2, 1]])
    assert state.select(torch.arange(4)) is state


def test_mean_patch_counts_merged_tokens_as_often_as_their_patches() -> None:
    x = torch.randn(1, 4, 5)
    state = State(x, 1, size=torch.tensor([1.0, 2.0, 1.0, 3.0]).view(1, 4, 1))
    repeated = x[:, [1, 1, 2, 3, 3, 3]]
    torch.testing.assert_close(state.mean_patch(), repeated.mean(1))


def test_a_deep_copy_shares_nothing() -> None:
    network = student(toy(), strategy("early_exit", {"blocks": [1], "threshold": 0.0}), strategy("token_merging", {}))
    twin = copy.deepcopy(network).eval()
    before = twin(images()).logits
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(twin(images()).logits, before)
    assert before.abs().sum() > 0
