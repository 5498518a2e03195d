from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose
from strategies.distillation.distillation_token import DistillationToken, DistillationTokenConfig
from strategies.dynamic.token_merging import TokenMerging
from strategies.facts import Facts
from strategies.losses import total_loss
from strategies.state import Output

NAME = "distillation_token"


def strategy(**options) -> DistillationToken:
    return DistillationToken(DistillationTokenConfig(**options))


def with_token(spec: ModelSpec, *others):
    torch.manual_seed(0)
    facts = facts_of(spec)
    return compose(build_model(spec), [*others, strategy()], Facts(facts, facts))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_is_timms_distilled_network_given_its_weights(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    torch.manual_seed(1)
    timms = build_model(ModelSpec(model="deit_tiny_distilled_patch16_224", args=toy_vit.args))
    weights = dict(timms.state_dict())
    student = with_token(toy_vit)
    extras = student.extras[NAME]
    with torch.no_grad():
        extras.token.copy_(weights.pop("dist_token")[0, 0])
        extras.position.copy_(weights["pos_embed"][0, 1])
        extras.head.weight.copy_(weights.pop("head_dist.weight"))
        extras.head.bias.copy_(weights.pop("head_dist.bias"))
    weights["pos_embed"] = weights["pos_embed"][:, [0, *range(2, 66)]]
    student.model.load_state_dict(weights)

    out = student.eval()(images)
    torch.testing.assert_close(out.logits, timms.eval()(images))
    timms.set_distilled_training(True)
    out, (cls, dist) = student.train()(images), timms.train()(images)
    torch.testing.assert_close(out.logits, cls)
    torch.testing.assert_close(out.distillation_logits, dist)


def test_a_network_that_timm_distils_keeps_its_own_token(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    student = with_token(ModelSpec(model="deit_tiny_distilled_patch16_224", args=toy_vit.args))
    assert len(student.extras) == 0
    timms = copy.deepcopy(student.model)
    assert torch.equal(student.eval()(images).logits, timms.eval()(images))
    timms.set_distilled_training(True)
    out, (cls, dist) = student.train()(images), timms.train()(images)
    assert torch.equal(out.logits, cls)
    assert torch.equal(out.distillation_logits, dist)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_is_half_and_half(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cls, dist, teacher = (torch.randn(5, 7, generator=generator) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 6])
    out = Output(cls, distillation_logits=dist)
    loss, _ = total_loss([strategy(kind=kind, temperature=2.0)], out, Output(teacher), labels)
    if kind == "hard":
        distillation = F.nll_loss(dist.log_softmax(1), teacher.max(dim=1).indices)
    else:
        p, q = (teacher / 2).softmax(1), (dist / 2).softmax(1)
        distillation = 4 * (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(cls, labels) + 0.5 * distillation)


def test_each_head_learns_from_its_own_loss_alone(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    student = with_token(toy_vit).train()
    out = student(images)
    term = strategy().losses(out, Output(torch.randn(2, 10)), torch.tensor([1, 2]))["distillation"]
    extras, head = student.extras[NAME], student.model.head
    own = torch.autograd.grad(term, [extras.token, extras.position, extras.head.weight], retain_graph=True)
    assert all(g.abs().sum() > 0 for g in own)
    assert torch.autograd.grad(term, [head.weight], allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(out.logits.sum(), [extras.head.weight], allow_unused=True) == (None,)


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_token": False, "global_pool": "avg"},
        {"global_pool": "avg"},
        {"reg_tokens": 2, "no_embed_class": True},
        {"pre_norm": True},
        {"global_pool": "map"},
    ],
)
def test_every_kind_of_pooling_takes_it(toy_vit: ModelSpec, images: torch.Tensor, arguments) -> None:
    student = with_token(ModelSpec(model=toy_vit.model, args={**toy_vit.args, **arguments}))
    seen: list[torch.Tensor] = []
    student.model.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    out = student.eval()(images)
    P = student.model.num_prefix_tokens
    assert out.num_prefix_tokens == P + 1
    (tokens,) = seen
    without = torch.cat([tokens[:, :P], tokens[:, P + 1 :]], dim=1)
    extras = student.extras[NAME]
    dist = extras.head(extras.norm(tokens[:, P]))
    expected = (student.model.forward_head(without) + dist) / 2
    torch.testing.assert_close(out.logits, expected)


def test_a_token_in_a_normed_network_starts_normed(toy_vit: ModelSpec) -> None:
    student = with_token(ModelSpec(model=toy_vit.model, args={**toy_vit.args, "pre_norm": True}))
    assert student.extras[NAME].token.std().item() == pytest.approx(1, abs=0.1)
    assert with_token(toy_vit).extras[NAME].token.std().item() == pytest.approx(0.02, abs=0.01)


def test_merging_never_takes_the_token(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    merging = TokenMerging(TokenMerging.Config(r=12))
    student = with_token(toy_vit, merging)
    student.taps, student.always_tap = frozenset({3}), True
    seen: list[torch.Tensor] = []
    student.model.norm.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    out = student.eval()(images)
    assert out.num_tokens == [54, 42, 30, 18]
    torch.testing.assert_close(out.features[3][:, :2], seen[0][:, :2], rtol=0, atol=0)
    patches = out.features[3][:, 2:]
    for prefix in (0, 1):
        assert not (patches == out.features[3][:, prefix : prefix + 1]).all(dim=-1).any()


def test_copies_are_independent(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    student = with_token(toy_vit).eval()
    before = student(images).logits
    twin = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.extras.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin(images).logits, before)
    assert not torch.equal(student(images).logits, before)


def test_weights_go_through_a_checkpoint(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    student = with_token(toy_vit).eval()
    nn.init.normal_(student.extras[NAME].head.weight)
    other = with_token(toy_vit).eval()
    other.load_network_state(student.network_state())
    assert torch.equal(other(images).logits, student(images).logits)
    assert f"extras.{NAME}.token" in student.network_state()


def test_vectors_are_spared_from_weight_decay(toy_vit: ModelSpec) -> None:
    extras = with_token(toy_vit).extras[NAME]
    assert extras.token.ndim == extras.position.ndim == 1


def test_refused_without_a_teacher_and_on_other_networks(toy_vit: ModelSpec) -> None:
    vit, cnn = facts_of(toy_vit), facts_of(ModelSpec(model="resnet10t", args={"num_classes": 10}))
    assert "no teacher" in conflicts([strategy()], Facts(vit))[0]
    assert "a plain Vision Transformer" in conflicts([strategy()], Facts(cnn, vit))[0]
    assert conflicts([strategy()], Facts(vit, cnn)) == []
