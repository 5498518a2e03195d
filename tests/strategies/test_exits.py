from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from strategies.claims import conflicts
from strategies.distillation.exits import Exits, ExitsConfig
from strategies.facts import Facts
from strategies.losses import total_loss
from strategies.state import Output
from tests.strategies.toys import facts_for, images, strategy, student, together, toy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def divergence(guide: np.ndarray, answer: np.ndarray, T: float) -> float:
    p, q = softmax(guide / T), softmax(answer / T)
    return float(T * T * (p * np.log(p / q)).sum(axis=1).mean())


def term(config: ExitsConfig, answers: list[Tensor]) -> Tensor:
    # In another order than the network's: what counts is the block.
    exits = {block: answers[block] for block in reversed(range(len(answers) - 1))}
    return Exits(config).losses(Output(answers[-1], exits=exits), None, LABELS)["distillation"]


@pytest.mark.parametrize("teachers", ["last", "later"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient(teachers, temperature) -> None:
    answers = [torch.randn(3, 5, requires_grad=True) for _ in range(4)]
    value = term(ExitsConfig(teachers=teachers, temperature=temperature), answers)
    value.backward()
    x = [a.detach().double().numpy() for a in answers]

    def reference(moved: list[np.ndarray]) -> float:
        """Answers that teach stay as they were: they are detached."""
        total = 0.0
        for i in range(3):
            guides = x[3:] if teachers == "last" else x[i + 1 :]
            total += np.mean([divergence(guide, moved[i], temperature) for guide in guides]) / 3
        return total

    assert value.item() == pytest.approx(reference(x), rel=1e-5)
    step = 1e-5
    for exit_, index in [(0, (0, 0)), (1, (2, 3)), (2, (1, 4))]:
        sides = []
        for sign in (1, -1):
            moved = [a.copy() for a in x]
            moved[exit_][index] += sign * step
            sides.append(reference(moved))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert answers[exit_].grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert answers[-1].grad is None


def test_it_acts_on_the_exits_of_early_exit() -> None:
    acting = together(Exits(ExitsConfig(temperature=2.0, weight=0.7)))
    assert sorted(s.name for s in acting) == ["early_exit", "exits"]
    network = student(toy(), *acting).train()
    out = network(images())
    loss, terms = total_loss(acting, out, None, LABELS)
    last, exits = out.logits.detach().numpy(), [out.exits[b].detach().numpy() for b in (0, 2)]
    expected = np.mean([divergence(last, e, 2.0) for e in exits])
    assert terms["exits.distillation"].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    (early_exit,) = (s for s in acting if s.name == "early_exit")
    without, _ = total_loss([early_exit], out, None, LABELS)
    torch.testing.assert_close(loss - without, 0.7 * terms["exits.distillation"])


def test_early_exits_learn_what_the_last_answer_says() -> None:
    acting = together(Exits(ExitsConfig(weight=5.0)))
    network = student(toy(), *acting).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(30):
        loss, _ = total_loss(acting, network(images()), None, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = network(images())
    agreement = [(e.argmax(dim=1) == out.logits.argmax(dim=1)).float().mean().item() for e in out.exits.values()]
    assert min(agreement) > 0.8


def test_without_exits_it_is_refused_with_the_way_out() -> None:
    acting = Exits(ExitsConfig())
    (reason,) = conflicts([acting], facts_for(toy()))
    assert "`exits` needs exits" in reason
    assert "Way out: list `early_exit`" in reason
    with_exits = [acting, strategy("early_exit", {"blocks": [1]})]
    assert conflicts(with_exits, Facts(facts_for(toy()).student)) == []  # and no teacher is needed


@pytest.mark.parametrize("wrong", [{"teachers": "next"}, {"temperature": 0.0}, {"weight": -1.0}])
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        ExitsConfig(**wrong)
