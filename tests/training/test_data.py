"""Batches: the same for any number of loader processes, every image by its own randomness."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from orchestrator.errors import DataError
from orchestrator.training.data import BatchSource, training_loader, validation_loader
from orchestrator.training.order import TrainOrder
from orchestrator.training.sources import balanced, open_images
from specs.data import ImageFolder, Sample, Torchvision
from specs.training import AugmentationSpec

CPU = torch.device("cpu")
DIGITS = Sample(kind="sample", limit_train=40, limit_val=25)
EVERYTHING = AugmentationSpec(
    crop_scale=[0.5, 1.0],
    crop_padding=2,
    hflip=0.5,
    color_jitter=0.3,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.5,
)


def batches(data, augmentation, workers=0, rank=0, world_size=1):
    data = data.model_copy(update={"loader_workers": workers})
    order = TrainOrder(40, 10, 1, 2, seed=5, rank=rank, world_size=world_size)
    return list(training_loader(open_images(data, "train"), data, augmentation, order, order.seed, CPU))


def same(a, b):
    return all(torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in zip(a, b, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolder:
    """Two classes of colour photographs of noise, wider than high, in three formats."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 5)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{label}{i:02d}.{('png', 'jpg', 'webp')[i % 3]}")
    return ImageFolder(kind="image_folder", root=str(tmp_path), image_size=24)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(workers):
    assert same(batches(DIGITS, EVERYTHING), batches(DIGITS, EVERYTHING, workers))


def test_loader_processes_change_nothing_on_photographs(photos):
    assert same(batches(photos, EVERYTHING), batches(photos, EVERYTHING, 2))


def test_workers_share_the_same_images():
    alone = batches(DIGITS, EVERYTHING)
    first, second = (batches(DIGITS, EVERYTHING, rank=r, world_size=2) for r in range(2))
    for whole, a, b in zip(alone, first, second, strict=True):
        assert (len(a[1]), len(b[1])) == (5, 5)
        apart = {x.numpy().tobytes() for x in (*a[0], *b[0])}
        assert apart == {x.numpy().tobytes() for x in whole[0]}


def test_an_image_looks_the_same_in_any_company_and_new_in_every_epoch():
    source = BatchSource(open_images(DIGITS, "train"), DIGITS, EVERYTHING, seed=5, cache_bytes=1 << 20)
    (alone, _), (among, _) = source.__getitems__([(0, 7)]), source.__getitems__([(0, 3), (0, 7), (1, 7)])
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[1], among[2])
    other = BatchSource(open_images(DIGITS, "train"), DIGITS, EVERYTHING, seed=6, cache_bytes=0)
    assert not torch.equal(other.__getitems__([(0, 7)])[0], alone)


def test_loading_leaves_the_generators_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    batches(DIGITS, EVERYTHING)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_evaluation_transform_against_torchvision(photos):
    data = photos.model_copy(update={"crop_pct": 0.8})
    loader = validation_loader(data, 4, CPU)
    got = torch.cat([images for images, _ in loader])
    reference = transforms.Compose(
        [
            transforms.Resize(30, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    files = sorted(Path(photos.root, "val").rglob("*.*"))
    expected = torch.stack([reference(Image.open(f).convert("RGB")) for f in files])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_one_value_of_mean_means_greyscale(photos):
    grey = photos.model_copy(update={"mean": [0.5], "std": [0.5]})
    images, _ = next(iter(validation_loader(grey, 3, CPU)))
    assert images.shape == (3, 1, 24, 24)
    assert batches(grey, EVERYTHING)[0][0].shape == (10, 1, 24, 24)


def test_training_without_a_crop_keeps_the_proportions(photos):
    plain, _ = batches(photos, AugmentationSpec())[0]
    assert plain.shape == (10, 3, 24, 24)
    source = BatchSource(open_images(photos, "train"), photos, AugmentationSpec(), 0, 0)
    evaluated = BatchSource(open_images(photos, "train"), photos, None, 0, 0)
    assert torch.equal(source.__getitems__([(0, 1)])[0], evaluated.__getitems__([(0, 1)])[0])


def test_the_digits_split_by_class():
    whole = Sample(kind="sample")
    train, val = open_images(whole, "train"), open_images(whole, "val")
    assert (len(train), len(val)) == (4000, 1000)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(val.labels).tolist() == [100] * 10
    shared = {train.read(i).tobytes() for i in range(4000)} & {val.read(i).tobytes() for i in range(1000)}
    assert not shared


def test_limits_keep_the_classes_even():
    assert balanced([0, 0, 0, 0, 1, 1, 2], 5) == [0, 1, 4, 5, 6]
    assert balanced([0, 0, 0, 1], 3) == [0, 1, 3]
    assert np.bincount(open_images(DIGITS, "val").labels).tolist() == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(photos, workers):
    bad = Path(photos.root, "train", "dog", "106.png")
    assert bad.is_file()
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=bad.name) as caught:
        batches(photos, AugmentationSpec(), workers)
    assert "Traceback" not in str(caught.value)


def test_what_a_folder_must_have(photos, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere/train"):
        open_images(ImageFolder(kind="image_folder", root="/nowhere"), "train")
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(DataError, match=r"val/emu is a class that the training folder"):
        open_images(photos, "val")
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder .*train/cow has no image"):
        open_images(photos, "train")
    single = tmp_path / "single" / "train" / "only"
    single.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(single / "a.png")
    with pytest.raises(DataError, match="at least two classes are needed, found: only"):
        open_images(ImageFolder(kind="image_folder", root=str(tmp_path / "single")), "train")


def test_a_class_without_validation_images_shifts_no_label(photos):
    for file in Path(photos.root, "val", "cat").iterdir():
        file.unlink()
    Path(photos.root, "val", "cat").rmdir()
    assert set(open_images(photos, "val").labels) == {1}


def test_data_that_is_not_there_and_must_not_be_fetched(tmp_path):
    data = Torchvision(kind="torchvision", name="CIFAR10", root=str(tmp_path), download=False)
    with pytest.raises(DataError, match=r"CIFAR10 is not in .* `data.download` is false"):
        open_images(data, "train")


def test_real_photographs(cifar10):
    data = ImageFolder(kind="image_folder", root=str(cifar10), image_size=32)
    images = open_images(data, "train")
    assert (len(images.classes), len(images)) == (10, 400)
    batch, labels = next(iter(validation_loader(data, 64, CPU)))
    assert batch.shape == (64, 3, 32, 32)
    assert labels.max() < 10
    assert batch.std() > 0.5
