from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.distillation.response import Response, ResponseConfig
from strategies.facts import Facts
from strategies.state import Output

CLASSES = 7


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def soft(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    p, q = softmax(teacher / T), softmax(student / T)
    return float(T * T * (p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def hard(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    picked = softmax(student)[np.arange(len(student)), teacher.argmax(axis=1)]
    return float(-np.log(picked).mean())


def decoupled(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    """Class by class; the target class is 0, its weight 1 and that of the others 8."""
    total = 0.0
    for s, t in zip(softmax(student / T), softmax(teacher / T), strict=True):
        binary = t[0] * np.log(t[0] / s[0]) + t[1:].sum() * np.log(t[1:].sum() / s[1:].sum())
        p, q = t[1:] / t[1:].sum(), s[1:] / s[1:].sum()
        total += binary + 8 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    return float(T * T * total / len(student))


def normalized(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t[None, 1:] / T)[0], softmax(s[None, 1:] / T)[0]
        total -= softmax(t[None])[0, 0] * np.log(softmax(s[None])[0, 0]) + 1.5 * T * T * (p * np.log(q)).sum()
    return float(total / len(student))


def relational(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    s, t = softmax(student / T), softmax(teacher / T)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    return float(T * T * (inter + 2 * intra))


KINDS = {
    "soft": (soft, {}),
    "hard": (hard, {}),
    "decoupled": (decoupled, {"nontarget_weight": 8.0}),
    "normalized": (normalized, {}),
    "relational": (relational, {"intra_weight": 2.0}),
}


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(seed))


def term(config: ResponseConfig, student: Tensor, teacher: Tensor) -> Tensor:
    target = torch.zeros(len(student), dtype=torch.int64)
    return Response(config).losses(Output(student), Output(teacher), target)["distillation"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient(kind, temperature) -> None:
    reference, weights = KINDS[kind]
    student, teacher = logits(0).requires_grad_(), logits(1)
    value = term(ResponseConfig(kind=kind, temperature=temperature, **weights), student, teacher)
    value.backward()
    s, t = student.detach().double().numpy(), teacher.double().numpy()
    assert value.item() == pytest.approx(reference(s, t, temperature), rel=1e-5)
    step, slope = 1e-5, np.zeros_like(s)
    for index in np.ndindex(*s.shape):
        up, down = s.copy(), s.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (reference(up, t, temperature) - reference(down, t, temperature)) / (2 * step)
    np.testing.assert_allclose(student.grad.numpy(), slope, atol=2e-5)


def test_soft_is_independent_of_the_batch_size_and_not_divided_by_the_classes() -> None:
    student, teacher = logits(0), logits(1)
    once = term(ResponseConfig(), student, teacher)
    twice = term(ResponseConfig(), student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(once, twice)
    elementwise = ((teacher / 3).softmax(1) * ((teacher / 3).log_softmax(1) - (student / 3).log_softmax(1))).mean()
    torch.testing.assert_close(once, 9 * CLASSES * elementwise)


@pytest.mark.parametrize("kind", ["soft", "decoupled", "relational"])
def test_the_same_logits_cost_nothing(kind) -> None:
    assert float(term(ResponseConfig(kind=kind), logits(0), logits(0))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sure", [[1000.0, 0.0, -1000.0], [-1000.0, 0.0, 1000.0]])
def test_a_very_sure_teacher_gives_a_finite_loss_and_gradient(kind, sure) -> None:
    for ours in (torch.zeros(1, 3), torch.tensor([sure]), -torch.tensor([sure])):
        ours.requires_grad_()
        value = term(ResponseConfig(kind=kind, temperature=1.0), ours, torch.tensor([sure]))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(ours.grad).all()


def test_soft_is_decoupled_where_the_teacher_doubts() -> None:
    """KL = KL(target or not) + (1 − p_target) · KL(others), so one image's soft term is a decoupled one."""
    student, teacher = logits(0)[:1], logits(1)[:1]
    doubt = 1 - float((teacher / 3).softmax(1)[0, 0])
    split = ResponseConfig(kind="decoupled", target_weight=1.0, nontarget_weight=doubt)
    torch.testing.assert_close(term(split, student, teacher), term(ResponseConfig(), student, teacher))


@pytest.mark.parametrize("kind", ["decoupled", "normalized"])
def test_the_larger_share_of_a_mixed_target_is_the_target_class(kind) -> None:
    student, teacher = Output(logits(0)), Output(logits(1))
    mixed = torch.full((4, CLASSES), 0.02)
    mixed[torch.arange(4), torch.tensor([3, 0, 6, 2])] = 0.6
    mixed[torch.arange(4), torch.tensor([1, 2, 4, 5])] = 0.3
    response = Response(ResponseConfig(kind=kind))
    plain = response.losses(student, teacher, torch.tensor([3, 0, 6, 2]))
    torch.testing.assert_close(response.losses(student, teacher, mixed), plain)
    assert not torch.allclose(
        response.losses(student, teacher, torch.tensor([1, 2, 4, 5]))["distillation"], *plain.values()
    )


def test_images_that_do_not_differ_are_uncorrelated() -> None:
    """A worker with one image in its micro-batch: the images of a class tell nothing."""
    config = ResponseConfig(kind="relational", temperature=1.0, inter_weight=0.0)
    ours = logits(0)[:1].requires_grad_()
    value = term(config, ours, logits(1)[:1])
    value.backward()
    assert float(value.detach()) == pytest.approx(1.0)
    assert not ours.grad.any()


def test_weights() -> None:
    assert Response(ResponseConfig(alpha=0.3)).weights() == {"task": pytest.approx(0.7), "distillation": 0.3}
    assert Response(ResponseConfig(alpha=0.0)).weights() == {"task": 1.0, "distillation": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"alpha": 1.1},
        {"kind": "warm"},
        {"target_weight": -1.0, "kind": "decoupled"},
    ],
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        ResponseConfig(**wrong)


@pytest.mark.parametrize(
    ("kind", "option", "way_out"),
    [
        ("soft", "inter_weight", "kind: relational"),
        ("relational", "target_weight", "`kind: decoupled` or `kind: normalized`"),
        ("decoupled", "intra_weight", "kind: relational"),
    ],
)
def test_weights_of_another_kind_are_refused(kind, option, way_out) -> None:
    with pytest.raises(ValidationError, match=way_out):
        ResponseConfig(kind=kind, **{option: 1.0})


def test_needs_a_teacher_of_the_same_classes(toy_vit: ModelSpec) -> None:
    student = facts_of(toy_vit)
    teacher = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 100}))
    response = Response(ResponseConfig())
    assert "no teacher" in conflicts([response], Facts(student))[0]
    assert "100 classes" in conflicts([response], Facts(student, teacher))[0]
    assert conflicts([response], Facts(student, student)) == []
