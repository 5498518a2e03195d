"""The strategies that teach each patch an answer: spatial_channel and token_labeling."""

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
from strategies.distillation.dense_labels import area_mean, labelling_loss, spatial_distillation, token_labels
from strategies.distillation.spatial_channel import SpatialChannel, SpatialChannelConfig
from strategies.distillation.token_labeling import TokenLabeling, TokenLabelingConfig
from strategies.facts import Facts
from strategies.losses import total_loss
from strategies.state import Output
from tests.strategies.toys import TEACHER, facts_for, images, student, teacher, toy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])
ACTING = [
    SpatialChannel(SpatialChannelConfig()),
    SpatialChannel(SpatialChannelConfig(kind="soft")),
    TokenLabeling(TokenLabelingConfig()),
    TokenLabeling(TokenLabelingConfig(head="shared")),
]
CNN = ModelSpec(model="resnet10t", args={"num_classes": 10})
COARSE = ModelSpec(model=TEACHER.model, args={**TEACHER.args, "patch_size": 16, "reg_tokens": 2})
SWIN = ModelSpec(model="swin_tiny_patch4_window7_224", args={"num_classes": 10, "img_size": 64, "window_size": 2})


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(("here", "there"), [(4, 2), (4, 4), (3, 2), (5, 3), (14, 7)])
def test_area_means_integrate_over_cells(here, there) -> None:
    """Each place as a square of 60 · 60 points, which all grids here divide; cells are means over points."""
    answers = torch.randn(2, here * here, 3, dtype=torch.float64)
    points = 420 // here
    fine = answers.view(2, here, here, 3).repeat_interleave(points, 1).repeat_interleave(points, 2).numpy()
    step = fine.shape[1] / there
    found = area_mean(answers, (there, there)).view(2, there, there, 3).numpy()
    assert step == int(step)
    for i in range(there):
        for j in range(there):
            cell = fine[:, int(i * step) : int((i + 1) * step), int(j * step) : int((j + 1) * step)]
            np.testing.assert_allclose(found[:, i, j], cell.mean(axis=(1, 2)), atol=1e-12)


def spatial(student: np.ndarray, dense: np.ndarray, whole: np.ndarray, share: float, kind: str, T: float) -> float:
    """Place by place; the student's 4·4 places are averaged in twos."""
    total, B = 0.0, len(student)
    for b in range(B):
        grid = student[b].reshape(4, 4, -1)
        for i in range(2):
            for j in range(2):
                s = grid[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(0, 1))
                t = share * dense[b, 2 * i + j] + (1 - share) * whole[b]
                if kind == "hard":
                    total -= np.log(softmax(s)[t.argmax()])
                else:
                    p, q = softmax(t / T), softmax(s / T)
                    total += T * T * (p * np.log(p / q)).sum()
    return float(total / (B * 4))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_spatial_value_and_gradient(kind, share) -> None:
    ours, dense, whole = torch.randn(2, 16, 5, requires_grad=True), torch.randn(2, 4, 5), torch.randn(2, 5)
    value = spatial_distillation(ours, dense, whole, share, kind, 2.0)
    value.backward()
    s, t, g = ours.detach().double().numpy(), dense.double().numpy(), whole.double().numpy()
    assert value.item() == pytest.approx(spatial(s, t, g, share, kind, 2.0), rel=1e-5)
    step = 1e-5
    for index in [(0, 0, 0), (1, 7, 3), (1, 15, 4)]:
        up, down = s.copy(), s.copy()
        up[index] += step
        down[index] -= step
        slope = (spatial(up, t, g, share, kind, 2.0) - spatial(down, t, g, share, kind, 2.0)) / (2 * step)
        assert ours.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_a_finer_teacher_is_averaged_instead() -> None:
    ours, dense, whole = torch.randn(2, 4, 5), torch.randn(2, 16, 5), torch.randn(2, 5)
    mean = dense.view(2, 2, 2, 2, 2, 5).mean(dim=(2, 4)).flatten(1, 2)
    found = spatial_distillation(ours, dense, whole, 1.0, "soft", 1.0)
    torch.testing.assert_close(found, spatial_distillation(ours, mean, whole, 1.0, "soft", 1.0))


def test_from_local_to_global_while_the_stage_goes_on() -> None:
    network = student(toy(), ACTING[0])
    out = Output(torch.randn(2, 10), dense_logits=torch.randn(2, 64, 10))
    taught = Output(torch.randn(2, 10), dense_logits=torch.randn(2, 64, 10))
    expected = {
        "linear": (1.0, 0.75, 0.0),
        "square": (1.0, 0.5625, 0.0),
        "cosine": (1.0, np.cos(np.pi / 8), 0.0),
    }
    for decay, shares in expected.items():
        acting = SpatialChannel(SpatialChannelConfig(decay=decay, kind="soft"))
        for progress, share in zip((0.0, 0.25, 1.0), shares, strict=True):
            acting.at(network, progress)
            wanted = spatial_distillation(out.dense_logits, taught.dense_logits, taught.logits, share, "soft", 1.0)
            torch.testing.assert_close(acting.losses(out, taught, LABELS[:2])["dense"], wanted)


@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_token_labels_and_their_loss(top_k) -> None:
    ours, dense = torch.randn(2, 9, 7, requires_grad=True), torch.randn(2, 9, 7)
    labels = token_labels(dense, (3, 3), top_k)
    value = labelling_loss(ours, labels)
    value.backward()
    total, slope = 0.0, np.zeros((2, 9, 7))
    for b in range(2):
        for i in range(9):
            s, t = ours[b, i].detach().double().numpy(), dense[b, i].double().numpy()
            kept = np.argsort(t)[-top_k:]
            label = np.zeros(7)
            label[kept] = softmax(t[kept])
            np.testing.assert_allclose(labels[b, i].numpy(), label, atol=1e-6)
            total -= (label * np.log(softmax(s))).sum() / 18
            slope[b, i] = (softmax(s) - label) / 18
    assert value.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(ours.grad.numpy(), slope, atol=1e-6)


def test_an_own_head_reads_the_normed_patches_and_a_shared_one_is_the_classifier() -> None:
    own, shared = ACTING[2], ACTING[3]
    network = student(toy("registers"), own).train()
    model, head = network.model, network.extras["token_labeling"]
    patches = model.forward_features(images(2))[:, 5:]
    answers = network(images(2)).readouts["token_labeling"]["answers"]
    torch.testing.assert_close(answers, patches @ head.fc.weight.T + head.fc.bias, rtol=1e-4, atol=1e-5)
    assert network.eval()(images(2)).readouts == {}
    network = student(toy("average_pool"), shared).train()
    patches = network.model.fc_norm(network.model.forward_features(images(2)))
    wanted = patches @ network.model.head.weight.T + network.model.head.bias
    torch.testing.assert_close(network(images(2)).dense_logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_teacher_answers_each_place_with_its_own_classifier() -> None:
    acting = ACTING[0]
    guide = teacher_of(student_of(build_model(CNN)), [acting], Facts(facts_of(toy()), facts_of(CNN)))
    taught = guide(images(2))
    torch.testing.assert_close(taught.dense_logits.mean(dim=1), taught.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("acting", ACTING, ids=["hard", "soft", "own", "shared"])
@pytest.mark.parametrize("own", ["plain", "average_pool", "cnn"])
@pytest.mark.parametrize("other", [CNN, COARSE, SWIN], ids=["cnn", "coarse", "hierarchical"])
def test_networks_of_every_form(acting, own, other) -> None:
    spec = CNN if own == "cnn" else toy(own)
    facts = Facts(facts_of(spec), facts_of(other))
    network = compose(build_model(spec), [acting], facts).train()
    guide = teacher_of(student_of(build_model(other)), [acting], facts)
    acting.at(network, 0.5)
    mixed = torch.full((2, 10), 0.1)
    loss, _ = total_loss([acting], network(images(2)), guide(images(2)), mixed)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    "acting",
    [SpatialChannel(SpatialChannelConfig(kind="soft", weight=5.0)), TokenLabeling(TokenLabelingConfig(weight=5.0))],
    ids=["spatial_channel", "token_labeling"],
)
def test_learning_brings_the_term_down(acting) -> None:
    network, guide = student(toy(), acting).train(), teacher(acting)
    acting.at(network, 0.2)
    taught = guide(images())
    assert taught.dense_logits is not None
    taught.dense_logits *= 20  # a teacher without training is sure of nothing
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        loss, terms = total_loss([acting], network(images()), taught, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(next(v for k, v in terms.items() if k != "task").item())
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("acting", ACTING, ids=["hard", "soft", "own", "shared"])
def test_what_does_not_fit_is_refused(acting) -> None:
    own = facts_of(toy())
    hundred = facts_of(ModelSpec(model="resnet10t", args={"num_classes": 100}))
    assert "no teacher" in conflicts([acting], Facts(own))[0]
    assert "100 classes" in conflicts([acting], Facts(own, hundred))[0]
    assert conflicts([acting], facts_for(toy())) == []
    with pytest.raises(ValueError, match="patch_drop_rate"):
        student(toy(patch_drop_rate=0.5), acting)


def test_more_classes_than_there_are_are_refused() -> None:
    with pytest.raises(OptionError, match="1 to 10"):
        TokenLabeling(TokenLabelingConfig(top_k=11)).claims(facts_for(toy()))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (SpatialChannelConfig, {"temperature": 0.0}),
        (SpatialChannelConfig, {"weight": -1.0}),
        (SpatialChannelConfig, {"decay": "x2"}),
        (TokenLabelingConfig, {"top_k": 0}),
        (TokenLabelingConfig, {"head": "none"}),
        (TokenLabelingConfig, {"weight": -0.5}),
    ],
)
def test_options_out_of_range_are_refused(config, wrong) -> None:
    with pytest.raises(ValidationError):
        config(**wrong)
