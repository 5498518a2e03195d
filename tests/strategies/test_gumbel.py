from __future__ import annotations

import pytest
import torch

from strategies.dynamic.gumbel import hard_sigmoid, hard_softmax, straight_through


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_decisions_are_drawn_with_the_probabilities_of_the_logits(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, -1.0])
    drawn = hard_softmax(logits.expand(20_000, -1), temperature)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.sum(-1), torch.ones(20_000))
    torch.testing.assert_close(drawn.mean(0), logits.softmax(-1), atol=0.015, rtol=0)
    yes = hard_sigmoid(logits.expand(20_000, -1), temperature)
    assert set(yes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(yes.mean(0), 1 / (1 + (-logits).exp()), atol=0.015, rtol=0)


def test_gradients_are_those_of_the_soft_value() -> None:
    logits = torch.randn(5, 2, requires_grad=True)
    torch.manual_seed(1)
    hard_softmax(logits, 0.7)[:, 0].sum().backward()
    torch.manual_seed(1)
    noise = -torch.empty(5, 2).exponential_().log()
    share = ((logits.detach() + noise) / 0.7).softmax(-1)[:, 0]
    torch.testing.assert_close(logits.grad[:, 0], share * (1 - share) / 0.7)
    torch.testing.assert_close(logits.grad[:, 1], -share * (1 - share) / 0.7)


def test_a_sigmoids_gradient_is_that_of_its_noise() -> None:
    logits = torch.zeros(2000, requires_grad=True)
    torch.manual_seed(2)
    drawn = hard_sigmoid(logits, 5.0)
    drawn.sum().backward()
    # σ'(t/5)/5 of logistic noise t lies in (0, 1/20], and is symmetric for both decisions
    assert float(logits.grad.min()) > 0
    assert float(logits.grad.max()) <= 1 / 20 + 1e-7
    assert abs(float(drawn.detach().mean()) - 0.5) < 0.05


def test_the_value_is_bit_for_bit_the_hard_one() -> None:
    hard, soft = (torch.rand(1000) > 0.5).float(), torch.rand(1000, requires_grad=True)
    assert torch.equal(straight_through(hard, soft), hard)


def test_draws_follow_the_global_generator() -> None:
    logits = torch.zeros(64)
    torch.manual_seed(3)
    first = hard_sigmoid(logits)
    second = hard_sigmoid(logits)
    torch.manual_seed(3)
    assert torch.equal(hard_sigmoid(logits), first)
    assert not torch.equal(first, second)
