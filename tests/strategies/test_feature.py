from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.distillation.feature import Feature, FeatureConfig
from strategies.distillation.feature_distance import distance, grid_tokens
from strategies.dynamic.token_merging import TokenMerging
from strategies.facts import Facts
from strategies.losses import total_loss

LABELS = torch.tensor([1, 2])
COARSE = {"patch_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 3}


def strategy(**options) -> Feature:
    return Feature(FeatureConfig(**options))


def pair_of(student: ModelSpec, teacher: ModelSpec, *strategies):
    torch.manual_seed(0)
    facts = Facts(facts_of(student), facts_of(teacher))
    ours = compose(build_model(student), strategies, facts).train()
    return ours, teacher_of(student_of(build_model(teacher)), strategies, facts)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sample [h, w, D] at the centres of a height × width grid; outside the outer centres the border goes on."""
    h, w, _ = grid.shape
    out = np.zeros((height, width, grid.shape[2]))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = grid[y0, x0] * (1 - x + x0) + grid[y0, x1] * (x - x0)
            bottom = grid[y1, x0] * (1 - x + x0) + grid[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


@pytest.mark.parametrize(("here", "there"), [((4, 4), (8, 8)), ((7, 7), (4, 4)), ((3, 3), (5, 2))])
def test_grids_are_resampled_bilinearly(here, there) -> None:
    n = here[0] * here[1]
    tokens = torch.randn(2, 3 + n, 6, dtype=torch.float64)
    aim = grid_tokens(tokens, 3, class_token=True, size=there).numpy()
    for b in range(2):
        grid = tokens[b, 3:].reshape(*here, 6).numpy()
        np.testing.assert_allclose(aim[b, 0], tokens[b, 0].numpy())
        np.testing.assert_allclose(aim[b, 1:], bilinear(grid, *there).reshape(-1, 6), atol=1e-12)


def test_a_feature_map_is_read_row_by_row() -> None:
    features = torch.arange(2 * 3 * 2 * 4, dtype=torch.float32).reshape(2, 3, 2, 4)
    tokens = grid_tokens(features, 0)
    assert tokens.shape == (2, 8, 3)
    assert torch.equal(tokens[1, 5], features[1, :, 1, 1])


@pytest.mark.parametrize("kind", ["mse", "l1", "cosine"])
def test_distance_and_gradient(kind) -> None:
    def reference(x: np.ndarray, y: np.ndarray) -> float:
        if kind == "mse":
            return float(((x - y) ** 2).mean())
        if kind == "l1":
            return float(np.abs(x - y).mean())
        cosine = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
        return float((1 - cosine).mean())

    ours, theirs = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    value = distance(kind, ours, theirs)
    value.backward()
    x, y = ours.detach().double().numpy(), theirs.double().numpy()
    assert value.item() == pytest.approx(reference(x, y), rel=1e-5)
    step, slope = 1e-6, np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (reference(up, y) - reference(down, y)) / (2 * step)
    np.testing.assert_allclose(ours.grad.numpy(), slope, atol=1e-5)


def test_the_term_is_the_mean_over_pairs_of_projected_patches(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    """Block outputs are read off timm's own networks; the projection is a product of matrices."""
    teacher = ModelSpec(model=toy_vit.model, args={**toy_vit.args, "embed_dim": 32, "num_heads": 2, "reg_tokens": 2})
    feature = strategy(pairs=((1, 0), (3, 3)), class_token=True)
    ours, theirs = pair_of(toy_vit, teacher, feature)
    seen: dict[str, torch.Tensor] = {}
    for who, model, blocks in (("ours", ours.model, (1, 3)), ("theirs", theirs.model, (0, 3))):
        x = model._pos_embed(model.patch_embed(images))
        for i, block in enumerate(model.blocks):
            x = block(x)
            if i in blocks:
                seen[f"{who}{i}"] = x
    expected = 0.0
    for s, t in ((1, 0), (3, 3)):
        layer = ours.extras["feature"].pairs[f"{s}-{t}"]
        aim = torch.cat([seen[f"theirs{t}"][:, :1], seen[f"theirs{t}"][:, 3:]], dim=1)
        expected += ((seen[f"ours{s}"] @ layer.weight.T + layer.bias - aim) ** 2).mean() / 2
    _, terms = total_loss([feature], ours(images), theirs(images), LABELS)
    torch.testing.assert_close(terms["feature.feature"], expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_convolution_sees_its_neighbours_on_the_grid(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    feature = strategy(projector="conv")
    ours, _ = pair_of(toy_vit, toy_vit, feature)
    layer = ours.extras["feature"].pairs["3-3"]
    with torch.no_grad():  # a convolution that fetches each patch's right-hand neighbour
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[:, :, 1, 2] = torch.eye(48)
    out = ours(images)
    patches = out.features[3][:, 1:].reshape(2, 8, 8, 48)
    shifted = torch.cat([patches[:, :, 1:], torch.zeros(2, 8, 1, 48)], dim=2).reshape(2, 64, 48)
    torch.testing.assert_close(out.readouts["feature"]["3-3"], shifted)


@pytest.mark.parametrize("projector", ["linear", "conv"])
@pytest.mark.parametrize(
    ("student", "teacher"), [("vit", "coarse"), ("coarse", "vit"), ("vit", "cnn"), ("cnn", "vit"), ("cnn", "cnn")]
)
def test_networks_of_every_form_teach_every_other(toy_vit, images, student, teacher, projector) -> None:
    specs = {
        "vit": toy_vit,
        "coarse": ModelSpec(model=toy_vit.model, args={**toy_vit.args, **COARSE}),
        "cnn": ModelSpec(model="resnet10t", args={"num_classes": 10}),
    }
    feature = strategy(projector=projector, loss="cosine")
    ours, theirs = pair_of(specs[student], specs[teacher], feature)
    loss, _ = total_loss([feature], ours(images), theirs(images), LABELS)
    loss.backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert all(p.grad.abs().sum() > 0 for p in ours.extras.parameters())
    assert all(p.grad is None for p in theirs.parameters())


def test_merged_tokens_stand_on_the_full_grid(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    feature = strategy()
    ours, theirs = pair_of(toy_vit, toy_vit, TokenMerging(TokenMerging.Config(r=8)), feature)
    out = ours(images)
    assert out.num_tokens == [57, 49, 41, 33]
    assert out.readouts["feature"]["3-3"].shape == (2, 64, 48)
    total_loss([feature], out, theirs(images), LABELS)[0].backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_the_network_itself_stays_the_plain_one(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    feature = strategy(weight=0.0)
    ours, theirs = pair_of(toy_vit, toy_vit, feature)
    plain = copy.deepcopy(ours.model).eval()
    out = ours(images)
    loss, terms = total_loss([feature], out, theirs(images), LABELS)
    assert torch.equal(loss, terms["task"])
    assert torch.equal(ours.eval()(images).logits, plain(images))
    assert ours(images).readouts == {}
    assert not Feature.deployed


def test_copies_are_independent(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    ours, _ = pair_of(toy_vit, toy_vit, strategy())
    twin = copy.deepcopy(ours)
    nn.init.zeros_(ours.extras["feature"].pairs["3-3"].weight)
    bias = ours.extras["feature"].pairs["3-3"].bias
    assert torch.equal(ours(images).readouts["feature"]["3-3"], bias.expand(2, 64, 48))
    assert not torch.allclose(twin(images).readouts["feature"]["3-3"], bias)


def test_learning_brings_the_features_together(toy_vit: ModelSpec, images: torch.Tensor) -> None:
    feature = strategy()
    ours, theirs = pair_of(toy_vit, toy_vit, feature)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    values = []
    for _ in range(10):
        loss, terms = total_loss([feature], ours(images), theirs(images), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(terms["feature.feature"].item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": ((4, 0),)}, "only blocks 0–3"),
        ({"pairs": ((0, 3),)}, "the teacher"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(toy_vit: ModelSpec, options, words) -> None:
    teacher = ModelSpec(model=toy_vit.model, args={**toy_vit.args, **COARSE})
    (reason,) = conflicts([strategy(**options)], Facts(facts_of(toy_vit), facts_of(teacher)))
    assert words in reason


def test_a_missing_teacher_or_class_token_is_named(toy_vit: ModelSpec) -> None:
    vit, cnn = facts_of(toy_vit), facts_of(ModelSpec(model="resnet10t", args={"num_classes": 10}))
    pooled = facts_of(ModelSpec(model=toy_vit.model, args={**toy_vit.args, "class_token": False, "global_pool": "avg"}))
    assert "no teacher" in conflicts([strategy()], Facts(vit))[0]
    assert "no class token" in conflicts([strategy(class_token=True)], Facts(vit, cnn))[0]
    assert "class token" in conflicts([strategy(class_token=True)], Facts(pooled, vit))[0]
    with pytest.raises(OptionError, match="compared alone"):
        strategy(class_token=True).claims(Facts(vit, cnn))


def test_patches_dropped_at_random_are_refused(toy_vit: ModelSpec) -> None:
    dropping = ModelSpec(model=toy_vit.model, args={**toy_vit.args, "patch_drop_rate": 0.5})
    with pytest.raises(ValueError, match="patch_drop_rate"):
        pair_of(dropping, toy_vit, strategy())


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": ()},
        {"pairs": ((1, 1), (1, 1))},
        {"pairs": ((-1, 0),)},
        {"weight": -1.0},
        {"class_token": True, "projector": "conv"},
    ],
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        FeatureConfig(**wrong)
