"""Deep mutual learning against a computation by hand, and whose gradients go where."""

from __future__ import annotations

import math

import pytest
import torch

from specs.model import ModelSpec
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts
from strategies.state import Output
from tests.strategies.toys import images, strategy, student, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def by_hand(logits: list[list[list[float]]], labels: list[int], k: int, T: float) -> tuple[float, float]:
    """(cross-entropy, mean divergence) of student k, in plain Python."""

    def softmax(z: list[float], T: float = 1.0) -> list[float]:
        e = [math.exp(v / T) for v in z]
        return [v / sum(e) for v in e]

    B, K = len(labels), len(logits)
    ce = -sum(math.log(softmax(logits[k][b])[labels[b]]) for b in range(B)) / B
    total = 0.0
    for other in range(K):
        if other != k:
            for b in range(B):
                p, q = softmax(logits[other][b], T), softmax(logits[k][b], T)
                total += T * T * sum(pc * math.log(pc / qc) for pc, qc in zip(p, q, strict=True))
    return ce, total / B / (K - 1)


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_losses_are_those_of_the_paper(T: float) -> None:
    torch.manual_seed(0)
    three = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)]
    labels = torch.tensor([0, 4, 2, 1])
    acting = strategy("mutual", {"peers": 2, "temperature": T, "weight": 0.7})
    out = Output(three[0], readouts={"mutual": {"0": three[1], "1": three[2]}})
    terms = acting.losses(out, None, labels)
    plain = [z.tolist() for z in three]
    (_, first), *others = (by_hand(plain, labels.tolist(), k, T) for k in range(3))
    assert float(terms["student"]) == pytest.approx(first, rel=1e-5)
    assert float(terms["peers"]) == pytest.approx(sum(ce + 0.7 * kl for ce, kl in others), rel=1e-5)
    assert acting.weights() == {"student": 0.7, "peers": 1.0}


def test_each_term_moves_its_own_student_alone() -> None:
    acting = strategy("mutual", {"peers": 2})
    network = student(toy(), acting).train()
    terms = acting.losses(network(images()), None, LABELS)
    own, peers = list(network.model.parameters()), list(network.extras["mutual"].parameters())
    for name, moved, still in (("student", own, peers), ("peers", peers, own)):
        gradients = torch.autograd.grad(terms[name], moved + still, allow_unused=True, retain_graph=True)
        assert all(g is not None for g in gradients[: len(moved)]), name
        assert all(g is None for g in gradients[len(moved) :]), name


def test_peers_begin_apart_and_untrained_beside_a_trained_student() -> None:
    spec = toy()
    model = build_model(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(3.0)
    network = compose(model, [strategy("mutual", {"peers": 2})], Facts(facts_of(spec)))
    peers = [dict(peer.model.named_parameters()) for peer in network.extras["mutual"].students]
    for name, weight in build_model(spec).named_parameters():
        a, b = (peer[name] for peer in peers)
        assert a.shape == b.shape == weight.shape
        torch.testing.assert_close(a.mean(), weight.mean(), rtol=0, atol=0.02, msg=name)
        if weight.numel() > 500:
            assert not torch.equal(a, b)
            torch.testing.assert_close(a.std(), weight.std(), rtol=0.2, atol=1e-3, msg=name)


def test_peers_cost_nothing_in_evaluation() -> None:
    network = student(toy(), strategy("mutual", {"peers": 3})).eval()
    out = network(images())
    assert not out.readouts
    assert torch.equal(out.logits, student(toy()).eval()(images()).logits)


def test_peers_are_pruned_alike_and_whole_otherwise() -> None:
    """What others attach is the first student's alone: skipped attention has no weights."""
    pruning, skipping = strategy("structured_pruning", {"ratio": 0.5}), strategy("skip_attention", {"blocks": [2]})
    network = student(toy(), strategy("mutual", {}), skipping).train()
    assert network(images()).readouts["mutual"]["0"].shape == (6, 10)
    pruned: Student = student(toy(), strategy("mutual", {}), pruning).train()
    widths = [b.mlp.fc1.out_features for b in pruned.model.blocks]
    assert widths == [b.mlp.fc1.out_features for b in pruned.extras["mutual"].students[0].model.blocks]
    assert pruned(images()).readouts["mutual"]["0"].shape == (6, 10)


def test_any_network_has_peers() -> None:
    spec = ModelSpec(model="resnet10t", args={"num_classes": 10})
    acting = strategy("mutual", {})
    network = compose(build_model(spec), [acting], Facts(facts_of(spec))).train()
    terms = acting.losses(network(images()), None, LABELS)
    assert all(torch.isfinite(term) for term in terms.values())
