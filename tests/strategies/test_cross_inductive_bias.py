"""A token for each of several teachers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specs.model import ModelSpec
from strategies.api import TEACHER_LOGITS, Claim
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose
from strategies.facts import Facts
from strategies.state import Output
from tests.strategies.checks import DEIT, counted_macs, outside_blocks, plain_block
from tests.strategies.toys import VARIANTS, images, strategy, toy

RESNET = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 10}))
VIT = facts_of(toy())
LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def built(variant: str = "plain", num_teachers: int = 2, **options: float) -> Student:
    torch.manual_seed(0)
    facts = Facts.of(facts_of(toy(variant)), Facts(VIT).shapes, [RESNET, VIT, RESNET][:num_teachers])
    return compose(build_model(toy(variant)), [strategy("cross_inductive_bias", options)], facts)


def kl(teacher: Tensor, student: Tensor, T: float) -> float:
    """T²·KL(teacher ‖ student) by sums over single numbers."""
    total = 0.0
    for t, s in zip((teacher / T).double().softmax(1), (student.detach() / T).double().softmax(1), strict=True):
        total += sum(float(p * (p / q).log()) for p, q in zip(t, s, strict=True))
    return T * T * total / len(teacher)


def test_every_token_learns_from_its_own_teacher() -> None:
    acting, network = strategy("cross_inductive_bias", {"temperature": 2.0}), built().train()
    out = network(images())
    torch.manual_seed(1)
    first, second = torch.randn(2, 6, 10)
    term = acting.losses(out, Output(first, others=(Output(second),)), LABELS)["distillation"]
    answers = out.readouts["cross_inductive_bias"]
    assert answers.keys() == {"0", "1"}
    expected = (kl(first, answers["0"], 2.0) + kl(second, answers["1"], 2.0)) / 2
    assert float(term.detach()) == pytest.approx(expected, rel=1e-5)
    swapped = acting.losses(out, Output(second, others=(Output(first),)), LABELS)["distillation"]
    assert float(swapped.detach()) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_evaluation_all_heads_are_averaged(variant: str) -> None:
    network = built(variant, num_teachers=3).eval()
    tokens = network.extras["cross_inductive_bias"].tokens
    seen: list[Tensor] = []
    for token in tokens:
        token.head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    plain: list[Tensor] = []
    network.heads.insert(0, lambda out, state: (plain.append(out.logits), out)[1])
    with torch.no_grad():
        out = network(images())
    assert len(seen) == 3
    torch.testing.assert_close(out.logits, (plain[0] + sum(seen)) / 4)
    assert not torch.equal(seen[0], seen[1])


def test_it_claims_every_teacher_and_refuses_one_with_other_classes() -> None:
    acting = strategy("cross_inductive_bias", {})
    two = Facts.of(VIT, Facts(VIT).shapes, [RESNET, VIT])
    assert acting.claims(two).needs == {Claim(TEACHER_LOGITS), Claim(TEACHER_LOGITS, teacher=1)}
    assert conflicts([acting], two) == []
    other = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 7}))
    (reason,) = conflicts([acting], Facts.of(VIT, Facts(VIT).shapes, [RESNET, other]))
    assert "teacher 2's logits" in reason
    assert "7 classes" in reason
    assert "no teacher" in conflicts([acting], Facts(VIT))[0]
    (clash,) = conflicts([acting, strategy("distillation_token", {})], two)
    assert "both change the distillation token" in clash


@pytest.mark.parametrize("num_teachers", [1, 2, 3])
@pytest.mark.parametrize("model", DEIT)
def test_macs_are_those_of_longer_sequences_and_more_heads(model: str, num_teachers: int) -> None:
    spec = ModelSpec(model=model)
    student = facts_of(spec)
    teacher = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 1000}))
    facts = Facts.of(student, Facts(student).shapes, [teacher] * num_teachers)
    network = compose(build_model(spec, device="meta"), [strategy("cross_inductive_bias", {})], facts).eval()
    D = student.embed_dim
    blocks = 12 * plain_block(D, 197 + num_teachers)
    assert counted_macs(network) == outside_blocks(D) + blocks + num_teachers * D * 1000
