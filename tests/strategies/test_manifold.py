from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.distillation.gram_distance import gram_distances
from strategies.distillation.manifold import Manifold, ManifoldConfig
from strategies.facts import Facts
from strategies.losses import total_loss
from tests.strategies.toys import TEACHER, facts_for, images, student, teacher, toy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def reference(x: np.ndarray, y: np.ndarray, drawn: list[tuple[int, int]]) -> dict[str, float]:
    """Pair by pair of patches."""
    B, n, _ = x.shape
    intra = [
        ((cosine(x[b, i], x[b, j]) - cosine(y[b, i], y[b, j])) ** 2)
        for b in range(B)
        for i in range(n)
        for j in range(n)
    ]
    inter = [
        ((cosine(x[a, i], x[b, i]) - cosine(y[a, i], y[b, i])) ** 2)
        for i in range(n)
        for a in range(B)
        for b in range(B)
    ]
    random = [(cosine(x[p], x[q]) - cosine(y[p], y[q])) ** 2 for p in drawn for q in drawn]
    return {"intra": np.mean(intra), "inter": np.mean(inter), "random": np.mean(random)}


@pytest.mark.parametrize("samples", [5, 100])
def test_value_and_gradient(samples) -> None:
    ours, theirs = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 2)
    torch.manual_seed(7)
    order = torch.randperm(12)[:samples].tolist()
    drawn = [(p // 4, p % 4) for p in order]
    torch.manual_seed(7)
    found = gram_distances(ours, theirs, samples)
    x, y = ours.detach().double().numpy(), theirs.double().numpy()
    expected = reference(x, y, drawn)
    for part, value in found.items():
        assert value.item() == pytest.approx(expected[part], rel=1e-4), part
    (found["intra"] + 2 * found["inter"] + 3 * found["random"]).backward()
    step = 1e-6
    for index in [(0, 0, 0), (1, 3, 4), (2, 2, 2)]:
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            parts = reference(moved, y, drawn)
            sides.append(parts["intra"] + 2 * parts["inter"] + 3 * parts["random"])
        assert ours.grad[index].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3, abs=1e-6)


def test_scaled_and_rotated_features_cost_nothing() -> None:
    ours = torch.randn(2, 4, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    for value in gram_distances(ours, 3 * ours @ rotation, 4).values():
        assert value.item() == pytest.approx(0, abs=1e-10)


def test_terms_are_means_over_pairs_of_patches_between_blocks() -> None:
    acting = Manifold(ManifoldConfig(pairs=((1, 0), (3, 3)), samples=1000))
    network, guide = student(toy("registers"), acting).train(), teacher(acting)
    out, taught = network(images()), guide(images())
    _, terms = total_loss([acting], out, taught, LABELS)
    parts = [
        reference(
            out.features[s][:, 5:].detach().numpy(),
            taught.features[t][:, 1:].numpy(),
            [(b, i) for b in range(2) for i in (0, 9)],
        )
        for s, t in ((1, 0), (3, 3))
    ]
    for part in ("intra", "inter"):
        assert terms[f"manifold.{part}"].item() == pytest.approx(np.mean([p[part] for p in parts]), rel=1e-4)
    assert acting.weights() == {"intra": 4.0, "inter": 0.1, "random": 0.2}


def test_the_same_seed_draws_the_same_patches() -> None:
    """A step that is repeated after a restart compares the same patches."""
    acting = Manifold(ManifoldConfig(samples=16))
    network, guide = student(toy(), acting).train(), teacher(acting)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(total_loss([acting], network(images()), guide(images()), LABELS)[1]["manifold.random"].item())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "other",
    [
        ModelSpec(model="resnet10t", args={"num_classes": 10}),
        ModelSpec(model=TEACHER.model, args={**TEACHER.args, "patch_size": 16}),
        ModelSpec(model="swin_tiny_patch4_window7_224", args={"num_classes": 10, "img_size": 64, "window_size": 2}),
    ],
    ids=["cnn", "coarse", "hierarchical"],
)
def test_teachers_of_every_form(other) -> None:
    acting = Manifold(ManifoldConfig())
    facts = Facts(facts_of(toy()), facts_of(other))
    network = compose(build_model(toy()), [acting], facts).train()
    guide = teacher_of(student_of(build_model(other)), [acting], facts)
    loss, _ = total_loss([acting], network(images(2)), guide(images(2)), LABELS[:2])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in network.parameters())


def test_by_default_the_first_and_the_last_third_are_compared() -> None:
    tiny, small = (facts_of(ModelSpec(model=f"deit_{size}_patch16_224")) for size in ("tiny", "small"))
    acting = Manifold(ManifoldConfig())
    assert acting.pairs(Facts(tiny, small)) == tuple((b, b) for b in (0, 1, 2, 3, 8, 9, 10, 11))
    assert acting.pairs(Facts(tiny, facts_of(ModelSpec(model="resnet18")))) == ((0, 0), (11, 4))


def test_blocks_that_do_not_exist_are_refused() -> None:
    assert "only blocks 0–3" in conflicts([Manifold(ManifoldConfig(pairs=((4, 0),)))], facts_for(toy()))[0]
    assert "the teacher" in conflicts([Manifold(ManifoldConfig(pairs=((0, 4),)))], facts_for(toy()))[0]
    assert "no teacher" in conflicts([Manifold(ManifoldConfig())], Facts(facts_of(toy())))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": ()},
        {"pairs": ((1, 1), (1, 1))},
        {"weights": (1.0, 1.0)},
        {"weights": (1.0, -1.0, 0.0)},
        {"samples": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        ManifoldConfig(**wrong)
