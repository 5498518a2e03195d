"""Every strategy with every other: they train a step together, or are refused with a reason that names the way out."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from strategies import registry
from strategies.claims import conflicts
from strategies.compose import ordered
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, together, toy

PAIRS = list(combinations(registry.names(), 2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pair(first: str, second: str) -> None:
    pair = together(*(strategy(name, registry.load(name).examples[0]) for name in (first, second)))
    reasons = conflicts(pair, facts_for(toy()))
    if reasons:
        for reason in reasons:
            for name in (first, second):  # or what it cannot do without
                assert any(each in reason for each in (name, *registry.load(name).beside))
            assert "Way out:" in reason
        with pytest.raises(ValueError, match="cannot be combined"):
            student(toy(), *pair)
        return
    network, guide = student(toy(), *pair), teacher(*pair)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        losses.append(float(step(network, pair, images(), torch.tensor([0, 3, 9, 2, 2, 7]), guide).detach()))
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
        optimiser.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert torch.isfinite(network.eval()(images()).logits).all()


def test_order_in_the_spec_does_not_matter_across_families() -> None:
    chosen = [strategy(n, registry.load(n).examples[0]) for n in ("response", "token_merging", "structured_pruning")]
    with torch.no_grad():
        forwards = student(toy(), *chosen).eval()(images()).logits
        backwards = student(toy(), *reversed(chosen)).eval()(images()).logits
    assert torch.equal(forwards, backwards)


def test_three_families_train_together() -> None:
    chosen = [
        strategy(n, registry.load(n).examples[0])
        for n in ("structured_pruning", "token_merging", "early_exit", "response", "distillation_token", "feature")
    ]
    guide, network = teacher(*chosen), student(toy(), *chosen)
    loss = step(network, ordered(chosen), images(), torch.tensor([0, 3, 9, 2, 2, 7]), guide)
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in network.parameters())
