"""Mixup and CutMix, worked out independently."""

from __future__ import annotations

import torch

from orchestrator.training.mixing import Mixing
from specs.training import TrainingSpec


def mixing(**augmentation) -> Mixing:
    return Mixing(TrainingSpec.model_validate({"label_smoothing": 0.1, "augmentation": augmentation}), 10, seed=2)


def test_mixup_mixes_mirrored_images_and_labels_by_one_share():
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    mixed, target = mixing(mixup=1.0)(images.clone(), labels, step=4)
    share = ((mixed[0] - images[5]) / (images[0] - images[5])).mean()
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0), rtol=1e-4, atol=1e-5)
    smooth = torch.full((6, 10), 0.01)
    smooth[torch.arange(6), labels] = 0.91
    torch.testing.assert_close(target, share * smooth + (1 - share) * smooth.flip(0), rtol=1e-4, atol=1e-5)


def test_cutmix_share_is_the_area_of_the_box():
    images, labels = torch.rand(4, 1, 16, 16), torch.arange(4)
    for step in range(20):
        mixed, target = mixing(cutmix=1.0)(images.clone(), labels, step)
        kept = (mixed[0] == images[0]).float().mean().item()
        pasted = mixed[0] == images[3]
        assert torch.equal(pasted | (mixed[0] == images[0]), torch.ones_like(pasted))
        torch.testing.assert_close(target[0, 0].item(), 0.9 * kept + 0.01, rtol=1e-4, atol=1e-5)


def test_the_step_decides_alone():
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    mix = mixing(mixup=1.0, cutmix=1.0)
    first, again, other = (mix(images.clone(), labels, step)[0] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_off_means_untouched():
    images, labels = torch.rand(3, 1, 8, 8), torch.arange(3)
    mix = mixing()
    assert not mix.on
    same_images, same_labels = mix(images, labels, 0)
    assert same_images is images
    assert same_labels is labels
