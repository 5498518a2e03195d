"""Counts against closed forms that know nothing of the counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from orchestrator.measurement.compute import (
    Count,
    checkpoint_bytes,
    counts_of_images,
    num_parameters,
    static_count,
    static_macs,
    unfused,
    weight_bytes,
)
from orchestrator.measurement.images import random_images
from orchestrator.measurement.network import Recipe
from specs.model import ModelSpec
from strategies.backbone import Student
from strategies.compose import student_of

TOY = (3, 64, 64)


def vit_macs(
    tokens: list[int], D: int, heads_width: list[int], mlp: list[int], patches: int, patch: int, C: int
) -> int:
    """MACs of a ViT by hand: patch embedding, then per block qkv, scores, values, projection and MLP, then the head.

    `tokens` has an entry per block and one more: what a block's MLP sees is what the next block starts with.
    """
    total = patches * 3 * patch * patch * D + D * C
    for before, after, A, M in zip(tokens[:-1], tokens[1:], heads_width, mlp, strict=True):
        total += before * D * 3 * A + 2 * before * before * A + before * A * D + 2 * after * D * M
    return total


@pytest.mark.parametrize(
    ("name", "D", "published"),
    [
        ("vit_tiny_patch16_224", 192, 1.254),
        ("deit_small_patch16_224", 384, 4.599),
        ("deit_base_patch16_224", 768, 17.564),
    ],
)
def test_plain_vits_at_224(name: str, D: int, published: float) -> None:
    with torch.device("meta"):
        network = student_of(timm.create_model(name))
    closed = vit_macs([197] * 13, D, [D] * 12, [4 * D] * 12, 196, 16, 1000)
    assert static_macs(network.eval(), (3, 224, 224)) == closed
    assert round(closed / 1e9, 3) == published


def test_plain_tiny_with_weights_and_fused_attention(toy_vit: ModelSpec) -> None:
    network = Recipe(model=toy_vit).build().network
    assert any(getattr(m, "fused_attn", False) for m in network.modules()), "otherwise nothing is shown"
    assert static_macs(network, TOY) == vit_macs([65] * 5, 48, [48] * 4, [192] * 4, 64, 8, 10)
    assert any(getattr(m, "fused_attn", False) for m in network.modules()), "put back"


def test_attention_of_others_is_counted_too() -> None:
    """A module that calls torch's fused attention itself, without timm's switch."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    assert static_macs(Attention(), (3, 10, 4)) == 2 * 3 * 10 * 10 * 4


def test_merged(toy_vit: ModelSpec) -> None:
    r = 8
    network = Recipe(model=toy_vit, strategies=({"name": "token_merging", "r": r},)).build().network
    tokens = [65 - r * block for block in range(5)]
    closed = vit_macs(tokens, 48, [48] * 4, [192] * 4, 64, 8, 10)
    # Matching compares every second patch with the others, by products of keys of the head's width; the class token
    # takes no part.
    matching = sum(((n - 1) // 2) ** 2 * 16 for n in tokens[:-1])
    assert static_macs(network, TOY) == closed + matching


def test_pruned(toy_vit: ModelSpec) -> None:
    network = Recipe(model=toy_vit, strategies=({"name": "structured_pruning", "ratio": 0.5},)).build().network
    blocks = network.model.blocks
    heads, mlp = [b.attn.num_heads * 16 for b in blocks], [b.mlp.fc1.out_features for b in blocks]
    assert sum(heads) < 4 * 48
    assert sum(mlp) < 4 * 192
    assert static_macs(network, TOY) == vit_macs([65] * 5, 48, heads, mlp, 64, 8, 10)
    by_hand = sum(p.numel() for p in network.model.parameters())
    dense = Recipe(model=toy_vit).build().network
    cut = sum(4 * 48 * (48 - h) + 3 * (48 - h) + (2 * 48 + 1) * (192 - m) for h, m in zip(heads, mlp, strict=True))
    assert num_parameters(network) == by_hand == num_parameters(dense) - cut


def test_exits_have_a_distribution(toy_vit: ModelSpec) -> None:
    """Each image costs what the blocks up to its exit cost, with the exit heads it met; at every exit there is."""
    images = random_images(64, TOY) * torch.linspace(0.1, 6, 64).view(-1, 1, 1, 1)

    def network(thresholds: dict[int, float]) -> Student:
        options = {"name": "early_exit", "blocks": [0, 2], "threshold": 0.0}
        student = Recipe(model=toy_vit, strategies=(options,)).build().network
        for block, threshold in thresholds.items():
            student.depth[block].threshold.fill_(threshold)
        return student

    every = {0: network({}), 2: network({0: 2.0}), 3: network({0: 2.0, 2: 2.0})}
    tokens, D, M, classes = 65, 48, 192, 10
    block = tokens * D * 4 * D + 2 * tokens**2 * D + 2 * tokens * D * M
    block_out = tokens * (3 * D + D + M + D) + 3 * tokens**2 + tokens * D  # 3 heads
    block_params = 12 * D * D + 13 * D
    embedding, head = 64 * 192 * D, classes * D
    embedding_params, head_params = 192 * D + D + D + tokens * D, classes * D + classes
    exit_params = sum(p.numel() for p in every[0].extras.parameters()) // 2  # norm and classifier, the same at both
    assert exit_params == 2 * D + head_params
    final_params = 2 * D + head_params
    expected = {
        left: Count(
            macs=embedding + (left + 1) * block + heads * head,
            activations=64 * D + (left + 1) * block_out + heads * classes,
            active_params=embedding_params + (left + 1) * block_params + exits * exit_params + end * final_params,
            traffic=0,
        )
        for left, heads, exits, end in ((0, 1, 1, 0), (2, 2, 2, 0), (3, 3, 2, 1))
    }

    def same(found: Count, wanted: Count) -> bool:
        return replace(found, traffic=0) == wanted

    for left, student in every.items():
        assert static_count(student, TOY) is None
        (found,) = counts_of_images(student, images[:1])
        assert same(found, expected[left]), left
    assert counts_of_images(every[3], images[:1])[0].active_params == num_parameters(every[3])

    # A threshold between the confidences of the images sends some out early and others on.
    with torch.no_grad():
        confidence = every[0](images).logits.softmax(1).max(1).values
        mixed = network({0: float(confidence.median()), 2: 2.0})
        left_at = mixed(images).exit_block.tolist()
    assert set(left_at) == {0, 3}, "otherwise nothing is shown"
    counts = counts_of_images(mixed, images)
    assert all(same(c, expected[b]) for c, b in zip(counts, left_at, strict=True))
    share = left_at.count(0) / 64
    assert Count.mean(counts).macs == pytest.approx(share * expected[0].macs + (1 - share) * expected[3].macs)


def test_equal_paths_are_counted_once(toy_vit: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.measurement import compute

    network = Recipe(model=toy_vit).build().network
    counted = compute._counted
    calls = []
    monkeypatch.setattr(compute, "_counted", lambda *a: calls.append(1) or counted(*a))
    assert len(set(counts_of_images(network, random_images(5, TOY)))) == 1
    assert len(calls) == 1


def test_training_only_modules_do_not_count(toy_vit: ModelSpec) -> None:
    plain = Recipe(model=toy_vit).build().network
    taught = Recipe(model=toy_vit, strategies=({"name": "feature"}, {"name": "response"})).build().network
    assert num_parameters(taught) == num_parameters(plain) == sum(p.numel() for p in plain.model.parameters())


def test_bytes(toy_vit: ModelSpec) -> None:
    network = Recipe(model=toy_vit).build().network
    assert weight_bytes(network) == 4 * num_parameters(network)
    assert weight_bytes(network, torch.bfloat16) == 2 * num_parameters(network)
    normed = torch.nn.BatchNorm2d(3)  # 2 · 3 parameters, 2 · 3 running statistics, and an int64 that stays one
    assert weight_bytes(normed, torch.float16) == 12 * 2 + 8
    assert 0 < checkpoint_bytes(network.network_state()) - weight_bytes(network) < 10_000, "the header of the file"


def test_the_switch_is_put_back_after_an_error(toy_vit: ModelSpec) -> None:
    network = Recipe(model=toy_vit).build().network
    with pytest.raises(RuntimeError, match="stop"), unfused(network):
        raise RuntimeError("stop")
    assert all(b.attn.fused_attn for b in network.model.blocks)
