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


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(seed))


def term(config: ResponseConfig, student: Tensor, teacher: Tensor) -> Tensor:
    target = torch.zeros(len(student), dtype=torch.int64)
    return Response(config).losses(Output(student), Output(teacher), target)["distillation"]


@pytest.mark.parametrize(("kind", "reference"), [("soft", soft), ("hard", hard)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient(kind, reference, temperature) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    value = term(ResponseConfig(kind=kind, temperature=temperature), student, teacher)
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


def test_the_same_logits_cost_nothing() -> None:
    assert float(term(ResponseConfig(), logits(0), logits(0))) == pytest.approx(0, abs=1e-6)


def test_a_very_sure_teacher_gives_a_finite_loss() -> None:
    sure = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert torch.isfinite(term(ResponseConfig(temperature=1.0), torch.zeros(1, 3), sure))


def test_weights() -> None:
    assert Response(ResponseConfig(alpha=0.3)).weights() == {"task": pytest.approx(0.7), "distillation": 0.3}
    assert Response(ResponseConfig(alpha=0.0)).weights() == {"task": 1.0, "distillation": 0.0}


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"alpha": 1.1}, {"kind": "warm"}])
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        ResponseConfig(**wrong)


def test_needs_a_teacher_of_the_same_classes(toy_vit: ModelSpec) -> None:
    student = facts_of(toy_vit)
    teacher = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 100}))
    response = Response(ResponseConfig())
    assert "no teacher" in conflicts([response], Facts(student))[0]
    assert "100 classes" in conflicts([response], Facts(student, teacher))[0]
    assert conflicts([response], Facts(student, student)) == []
