from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.distillation.attention_relation import AttentionRelation, AttentionRelationConfig
from strategies.distillation.relations import most_heads, relation_cross_entropy
from strategies.facts import Facts
from strategies.losses import total_loss
from tests.strategies.toys import TEACHER, facts_for, images, strategy, student, teacher, toy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(ours: np.ndarray, theirs: np.ndarray, relations: list[tuple[int, int]], heads: int) -> float:
    """Token by token: how alike the others look to it, in each run of channels."""
    _, B, N, _ = ours.shape
    total = 0.0
    for i, j in relations:
        for b in range(B):
            for h in range(heads):
                rows = []
                for x in (ours, theirs):
                    d = x.shape[-1] // heads
                    run = slice(h * d, (h + 1) * d)
                    rows.append([softmax(x[j, b][:, run] @ x[i, b, n, run] / d**0.5) for n in range(N)])
                total -= sum((t * np.log(s)).sum() for s, t in zip(*rows, strict=True))
    return total / (len(relations) * B * heads * N)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("relations", [[(0, 0), (1, 1), (2, 2)], [(0, 1), (2, 2)], [(0, 2)]])
def test_value_and_gradient(heads, relations) -> None:
    ours, theirs = torch.randn(3, 2, 5, 8, requires_grad=True), torch.randn(3, 2, 5, 12)
    value = relation_cross_entropy(ours, theirs, relations, heads)
    value.backward()
    x, y = ours.detach().double().numpy(), theirs.double().numpy()
    assert value.item() == pytest.approx(reference(x, y, relations, heads), rel=1e-5)
    step = 1e-5
    for index in [(0, 0, 0, 0), (1, 1, 4, 7), (2, 0, 2, 3)]:
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        slope = (reference(up, y, relations, heads) - reference(down, y, relations, heads)) / (2 * step)
        assert ours.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_most_heads() -> None:
    assert most_heads(3, 48, 64) == 2
    assert most_heads(3, 192, 768) == 3
    assert most_heads(12, 768, 768) == 12
    assert most_heads(3, 35, 64) == 1


def test_what_is_compared_are_the_networks_own_projections() -> None:
    """Queries, keys and values are read off timm's own networks; the class token takes part, registers do not."""
    acting = AttentionRelation(AttentionRelationConfig(layers=((1, 2),), relations=("qk", "vv"), heads=4))
    network, guide = student(toy("registers"), acting).train(), teacher(acting)
    joined = []
    for model, block, prefix in ((network.model, 1, 5), (guide.model, 2, 1)):
        x = model._pos_embed(model.patch_embed(images(2)))
        for before in model.blocks[:block]:
            x = before(x)
        attn = model.blocks[block].attn
        qkv = attn.qkv(model.blocks[block].norm1(x))
        parts = torch.stack(qkv.chunk(3, dim=-1))
        joined.append(torch.cat([parts[:, :, :1], parts[:, :, prefix:]], dim=2).detach().numpy())
    _, terms = total_loss([acting], network(images(2)), guide(images(2)), LABELS[:2])
    expected = reference(joined[0], joined[1], [(0, 1), (2, 2)], 4)
    assert terms["attention_relation.relation"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variant", ["plain", "average_pool", "qk_norm", "distilled", "registers"])
@pytest.mark.parametrize(
    "args",
    [{}, {"patch_size": 16, "num_heads": 2}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}],
    ids=["plain", "coarse", "average_pool", "registers"],
)
def test_teachers_of_every_form(variant, args) -> None:
    acting = AttentionRelation(AttentionRelationConfig())
    own, other = toy(variant), ModelSpec(model=TEACHER.model, args={**TEACHER.args, **args})
    facts = Facts(facts_of(own), facts_of(other))
    network = compose(build_model(own), [acting], facts).train()
    guide = teacher_of(student_of(build_model(other)), [acting], facts)
    loss, terms = total_loss([acting], network(images(2)), guide(images(2)), LABELS[:2])
    loss.backward()
    assert torch.isfinite(terms["attention_relation.relation"])
    assert network.model.blocks[3].attn.qkv.weight.grad.abs().sum() > 0


def test_a_network_that_is_its_own_teacher_has_no_gradient() -> None:
    projections = torch.randn(3, 2, 6, 8, requires_grad=True)
    value = relation_cross_entropy(projections, projections.detach(), [(0, 0), (1, 1), (0, 1)], 2)
    value.backward()
    assert projections.grad.abs().max() < 1e-6


def test_learning_brings_the_relations_together() -> None:
    acting = AttentionRelation(AttentionRelationConfig(weight=10.0))
    network, guide = student(toy(), acting).train(), teacher(acting)
    taught = guide(images())
    least = reference_entropy(taught.projections[3])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    values = []
    for _ in range(20):
        loss, terms = total_loss([acting], network(images()), taught, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(terms["attention_relation.relation"].item() - least)
    assert 0 < values[-1] < 0.7 * values[0]


def reference_entropy(projections: torch.Tensor) -> float:
    """The teacher's own entropy in two relation heads: the least that the term can be."""
    joined = projections.transpose(2, 3).flatten(3).numpy()
    return reference(joined, joined, [(0, 0), (1, 1), (2, 2)], 2)


def test_tokens_that_merged_before_are_refused_and_behind_are_none_of_its_business() -> None:
    merging = strategy("token_merging", {"r": 4, "blocks": [1, 2, 3]})
    (reason,) = conflicts([merging, AttentionRelation(AttentionRelationConfig())], facts_for(toy()))
    assert "token_merging" in reason
    assert "attention_relation" in reason
    assert conflicts([merging, AttentionRelation(AttentionRelationConfig(layers=((1, 3),)))], facts_for(toy())) == []


def test_networks_and_options_that_do_not_fit_are_refused() -> None:
    cnn = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 10}))
    acting = AttentionRelation(AttentionRelationConfig())
    assert "plain Vision Transformer" in conflicts([acting], Facts(facts_of(toy()), cnn))[0]
    assert "plain Vision Transformer" in conflicts([acting], Facts(cnn, facts_of(TEACHER)))[0]
    assert "no teacher" in conflicts([acting], Facts(facts_of(toy())))[0]
    with pytest.raises(OptionError, match="5 heads do not divide the 48 channels"):
        AttentionRelation(AttentionRelationConfig(heads=5)).claims(facts_for(toy()))
    with pytest.raises(OptionError, match="the teacher"):
        AttentionRelation(AttentionRelationConfig(heads=3)).claims(facts_for(toy()))
    beyond = AttentionRelation(AttentionRelationConfig(layers=((4, 0),)))
    assert "only blocks 0–3" in conflicts([beyond], facts_for(toy()))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ()},
        {"layers": ((1, 1), (1, 1))},
        {"heads": 0},
        {"relations": ()},
        {"relations": ("qq", "qq")},
        {"relations": ("xy",)},
    ],
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        AttentionRelationConfig(**wrong)
