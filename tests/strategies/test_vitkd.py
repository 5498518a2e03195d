from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.distillation.mimic_generate import random_mask
from strategies.distillation.vitkd import ViTKD, ViTKDConfig
from strategies.facts import Facts
from strategies.losses import total_loss
from tests.strategies.toys import TEACHER, facts_for, images, student, teacher, toy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])


def convolution(grid: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    """3×3, zeros outside: [h, w, D] → [h, w, D']; place by place."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    h, w, _ = grid.shape
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((h, w, len(bias)))
    for i in range(h):
        for j in range(w):
            out[i, j] = bias + np.einsum("ocij,ijc->o", weight, padded[i : i + 3, j : j + 3])
    return out


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_both_terms_from_their_definition(ratio) -> None:
    acting = ViTKD(ViTKDConfig(shallow=((0, 1), (1, 1)), deep=(2, 3), mask_ratio=ratio))
    network, guide = student(toy("registers"), acting).train(), teacher(acting)
    layers = network.extras["vitkd"]
    torch.nn.init.normal_(layers.mask_token)
    out, taught = network(images(2)), guide(images(2))
    loss, terms = total_loss([acting], out, taught, LABELS[:2])

    mimic = 0.0
    for s, t in ((0, 1), (1, 1)):
        layer = layers.mimics.pairs[f"{s}-{t}"]
        ours = out.features[s][:, 5:] @ layer.weight.T + layer.bias
        mimic += ((ours - taught.features[t][:, 1:]) ** 2).sum().item() / 2
    assert terms["vitkd.mimic"].item() == pytest.approx(mimic, rel=1e-5)

    masks = out.readouts["vitkd"]["mask"].numpy()
    aligned = (out.features[2][:, 5:] @ layers.align.weight.T + layers.align.bias).detach().numpy()
    generation = 0.0
    for b in range(2):
        tokens = np.where(masks[b], layers.mask_token.detach().numpy(), aligned[b]).reshape(8, 8, -1)
        made = convolution(np.maximum(convolution(tokens, layers.generate[0]), 0), layers.generate[2]).reshape(64, -1)
        difference = made - taught.features[3][b, 1:].numpy()
        generation += sum((difference[i] ** 2).sum() for i in range(64) if masks[b, i, 0]) / 2
    assert terms["vitkd.generation"].item() == pytest.approx(generation / ratio, rel=1e-4)
    weighted = terms["task"] + 3e-5 * terms["vitkd.mimic"] + 3e-6 * terms["vitkd.generation"]
    torch.testing.assert_close(loss.detach(), weighted)


@pytest.mark.parametrize(("ratio", "masked"), [(0.5, 32), (0.01, 1), (0.26, 17), (1.0, 64)])
def test_masks_have_one_size_and_differ_between_images(ratio, masked) -> None:
    masks = random_mask(50, 64, ratio, torch.device("cpu"))
    assert masks.sum(dim=1).flatten().tolist() == [masked] * 50
    assert masked == 64 or len({tuple(m.flatten().tolist()) for m in masks}) > 25
    if masked == 32:
        assert (masks.float().mean(dim=0) - 0.5).abs().max() < 0.35


def test_what_is_not_masked_is_not_compared() -> None:
    """Gradients reach the generator from masked places alone: with its last layer at 0, the bias sees their sum."""
    acting = ViTKD(ViTKDConfig(mimic_weight=0.0, generation_weight=1.0))
    network, guide = student(toy(), acting).train(), teacher(acting)
    last = network.extras["vitkd"].generate[2]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    out, taught = network(images()), guide(images())
    acting.losses(out, taught, LABELS)["generation"].backward()
    mask = out.readouts["vitkd"]["mask"]
    aims = (taught.features[3][:, 1:] * mask).sum(dim=(0, 1))
    torch.testing.assert_close(last.bias.grad, -2 * aims / 6 / 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        ModelSpec(model="resnet10t", args={"num_classes": 10}),
        ModelSpec(model=TEACHER.model, args={**TEACHER.args, "patch_size": 16}),
    ],
    ids=["cnn", "coarse"],
)
@pytest.mark.parametrize("compact", [False, True], ids=["vit", "cnn_student"])
def test_networks_of_every_form(other, compact) -> None:
    acting = ViTKD(ViTKDConfig())
    own = ModelSpec(model="resnet10t", args={"num_classes": 10}) if compact else toy()
    facts = Facts(facts_of(own), facts_of(other))
    network = compose(build_model(own), [acting], facts).train()
    guide = teacher_of(student_of(build_model(other)), [acting], facts)
    loss, _ = total_loss([acting], network(images(2)), guide(images(2)), LABELS[:2])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in network.parameters())


def test_learning_brings_both_terms_down() -> None:
    acting = ViTKD(ViTKDConfig(mimic_weight=1e-2, generation_weight=1e-2))
    network, guide = student(toy(), acting).train(), teacher(acting)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    seen = []
    for _ in range(25):
        loss, terms = total_loss([acting], network(images()), guide(images()), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((terms["vitkd.mimic"].item(), terms["vitkd.generation"].item()))
    assert seen[-1][0] < 0.8 * seen[0][0]
    assert seen[-1][1] < 0.8 * seen[0][1]


def test_blocks_that_do_not_exist_are_refused() -> None:
    flat = Facts(facts_of(toy()), facts_of(ModelSpec(model=TEACHER.model, args={**TEACHER.args, "depth": 1})))
    assert "the teacher `vit_tiny_patch16_224` has only block 0" in conflicts([ViTKD(ViTKDConfig())], flat)[0]
    assert "only blocks 0–3" in conflicts([ViTKD(ViTKDConfig(deep=(4, 3)))], facts_for(toy()))[0]
    assert "no teacher" in conflicts([ViTKD(ViTKDConfig())], Facts(facts_of(toy())))[0]


def test_patches_dropped_at_random_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_drop_rate"):
        student(toy(patch_drop_rate=0.5), ViTKD(ViTKDConfig()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shallow": ()},
        {"shallow": ((1, 1), (1, 1))},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.1},
        {"mimic_weight": -1.0},
        {"deep": (-1, 0)},
    ],
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        ViTKDConfig(**wrong)
