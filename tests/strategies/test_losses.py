from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from specs.strategy import StrategyConfig
from strategies.api import Strategy
from strategies.distillation.response import Response, ResponseConfig
from strategies.dynamic.early_exit import EarlyExit, EarlyExitConfig
from strategies.losses import total_loss
from strategies.state import Output


class PullConfig(StrategyConfig):
    name: Literal["pull"] = "pull"
    task: float | None = None


class Pull(Strategy[PullConfig]):
    """Two terms with known values; one of them has no weight of its own."""

    kind = "distillation"
    Config = PullConfig

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        return {"square": out.logits.square().sum(), "sum": out.logits.sum()}

    def weights(self) -> dict[str, float]:
        task = {} if self.config.task is None else {"task": self.config.task}
        return {"square": 0.25, **task}


def cross_entropy(logits: np.ndarray, probabilities: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_q = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(probabilities * log_q).sum(axis=1).mean())


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)


def test_without_strategies_it_is_the_cross_entropy_of_smoothed_labels(logits: Tensor) -> None:
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss, terms = total_loss([], Output(logits), None, labels, label_smoothing=0.2)
    smoothed = np.eye(5)[labels.numpy()] * 0.8 + 0.2 / 5
    assert loss.item() == pytest.approx(cross_entropy(logits.detach().numpy(), smoothed), rel=1e-5)
    assert list(terms) == ["task"]


def test_heads_of_strategies_learn_the_same_smoothed_labels(logits: Tensor) -> None:
    labels, at_exit = torch.tensor([0, 4, 2, 2, 1, 3]), torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    early = EarlyExit(EarlyExitConfig(blocks=(1,)))
    out = Output(logits, exits={1: at_exit}, num_tokens=[1] * 4)
    _, terms = total_loss([early], out, None, labels, label_smoothing=0.2)
    smoothed = np.eye(5)[labels.numpy()] * 0.8 + 0.2 / 5
    assert float(terms["early_exit.exits"]) == pytest.approx(2 / 4 * cross_entropy(at_exit.numpy(), smoothed), rel=1e-5)


def test_probabilities_are_not_smoothed_again(logits: Tensor) -> None:
    mixed = torch.softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    loss, _ = total_loss([], Output(logits), None, mixed, label_smoothing=0.2)
    assert loss.item() == pytest.approx(cross_entropy(logits.detach().numpy(), mixed.numpy()), rel=1e-5)


def test_terms_are_weighted_and_task_factors_multiply(logits: Tensor) -> None:
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    teacher = Output(torch.zeros(6, 5))
    strategies = [Pull(PullConfig(task=0.5)), Response(ResponseConfig(kind="hard", alpha=0.2))]
    loss, terms = total_loss(strategies, Output(logits), teacher, labels)
    values = logits.detach().double().numpy()
    task = cross_entropy(values, np.eye(5)[labels.numpy()])
    hard = cross_entropy(values, np.eye(5)[[0] * 6])
    expected = 0.5 * 0.8 * task + 0.25 * (values**2).sum() + values.sum() + 0.2 * hard
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {"task", "pull.square", "pull.sum", "response.distillation"}
    assert float(terms["pull.square"]) == pytest.approx((values**2).sum(), rel=1e-5)
    assert not any(t.requires_grad for t in terms.values())


def test_a_task_of_weight_zero_stays_in_the_graph(logits: Tensor) -> None:
    loss, _ = total_loss(
        [Response(ResponseConfig(alpha=1.0))], Output(logits), Output(logits.detach()), torch.zeros(6).long()
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None


def test_bfloat16_logits_are_summed_in_float32(logits: Tensor) -> None:
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss, _ = total_loss([], Output(logits.bfloat16()), None, labels)
    assert loss.dtype == torch.float32
    expected = cross_entropy(logits.detach().bfloat16().double().numpy(), np.eye(5)[labels.numpy()])
    assert loss.item() == pytest.approx(expected, rel=1e-6)
