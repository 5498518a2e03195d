"""One strategy of each family together: at least 200 triples, drawn with a fixed seed, train a step or are refused."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from strategies import registry
from strategies.claims import conflicts
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, together, toy

SAMPLED = 200
LABELS = torch.tensor([0, 3, 9, 2])


def triples() -> list[tuple[str, str, str]]:
    """All triples if there are no more than wanted, else a sample in which every strategy occurs."""
    by_kind = {
        kind: [n for n in registry.names() if registry.load(n).kind == kind]
        for kind in ("component", "dynamic", "distillation")
    }
    everything = list(product(*by_kind.values()))
    drawn = random.Random(20260).sample(everything, min(SAMPLED, len(everything)))
    seen = {name for triple in drawn for name in triple}
    for name in (name for names in by_kind.values() for name in names if name not in seen):
        drawn.append(next(triple for triple in everything if name in triple))
    return drawn


@pytest.mark.parametrize("triple", triples(), ids="+".join)
def test_triple(triple: tuple[str, str, str]) -> None:
    acting = together(*(strategy(name, registry.load(name).examples[0]) for name in triple))
    reasons = conflicts(acting, facts_for(toy()))
    if reasons:
        for reason in reasons:
            assert sum(f"`{name}`" in reason or f"{name}." in reason for name in (s.name for s in acting)) >= 1
            assert "Way out:" in reason or "allowed:" in reason
        with pytest.raises(ValueError, match="cannot be combined"):
            student(toy(), *acting)
        return
    network, guide = student(toy(), *acting), teacher(*acting)
    loss = step(network, acting, images(4), LABELS, guide)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters() if p.requires_grad)
    with torch.no_grad():
        assert torch.isfinite(network.eval()(images(4)).logits).all()
