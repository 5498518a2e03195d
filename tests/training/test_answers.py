"""Answers cut to K classes, and what comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from orchestrator.planning.stored import answer_bytes, index_bytes, shown_bytes
from orchestrator.training.answers import compress, expand


def back(logits, top_k):
    return expand(compress(logits, top_k), logits.shape[1]).softmax(-1)


def test_kept_classes_are_exact_and_the_others_share_the_rest():
    logits = 3 * torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    found = back(logits, 4).numpy()
    for row, got in zip(logits.double().numpy(), found, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        kept = sorted(range(12), key=lambda c: -p[c])[:4]
        rest = (1 - sum(p[c] for c in kept)) / (12 - 4)
        expected = [p[c] if c in kept else rest for c in range(12)]
        assert got == pytest.approx(expected, rel=5e-3, abs=1e-9)
        assert got.sum() == pytest.approx(1, abs=1e-6)


def test_all_classes_kept_lose_nothing_but_digits():
    logits = 10 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 3.0):  # at 3 the tail counts that a half-precision probability would lose
        wanted = (logits / temperature).softmax(-1)
        found = (expand(compress(logits, 10), 10) / temperature).softmax(-1)
        assert (found - wanted).abs().max() < 1e-3
        assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_a_sure_teacher_keeps_its_missing_mass():
    logits = torch.zeros(1, 100)
    logits[0, 3] = 15.0  # 99 classes with 3e-7 each: 1 − Σ in half precision would be 0 or 5e-4
    found = back(logits, 1)
    assert found[0, 5].item() == pytest.approx(math.exp(-15) / (1 + 99 * math.exp(-15)), rel=5e-3)


def test_the_smallest_type_holds_the_classes():
    assert [index_bytes(c) for c in (2, 256, 257, 65_536, 65_537)] == [1, 1, 2, 2, 4]


def test_the_published_example_has_its_published_size():
    # TinyViT: 13,153,500 images of ImageNet-22k, 100 of 21,841 classes, 90 epochs: "481 GB".
    assert shown_bytes(13_153_500 * 90 * answer_bytes(100, 21_841)) == "481 GB"
    assert [shown_bytes(b) for b in (0, 999, 1_000, 12_300, 999_600, 4.2e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12 kB",
        "1.0 MB",
        "4.2 TB",
    ]
