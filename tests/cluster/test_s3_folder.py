"""Images in a bucket look like the same images in a folder, and each node fetches each of them once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.cache import cache_folder
from cluster.remote import open_folder
from cluster.s3_client import client
from cluster.storage import StoreUnavailable
from orchestrator.errors import DataError
from orchestrator.planning.manifest import manifest_of
from orchestrator.training.data import BatchSource
from orchestrator.training.sources import open_images
from specs.address import Address
from specs.data import ImageFolder


@pytest.fixture
def images(tmp_path: Path, address: Address) -> tuple[ImageFolder, ImageFolder]:
    """The same images in a folder and in a bucket."""
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, number in (("train", 4), ("val", 2)):
        for kind in ("b dog", "a cat"):
            for i in range(number):
                path = root / split / kind / ("deep" if i == 1 else "") / f"{i}-{'é' if i else 'e'}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
                key = address.key(path.relative_to(root).as_posix())
                client(address).put_object(Bucket=address.bucket, Key=key, Body=path.read_bytes())
    client(address).put_object(Bucket=address.bucket, Key=address.key("train/"), Body=b"")
    client(address).put_object(Bucket=address.bucket, Key=address.key("train/a cat/notes.txt"), Body=b"no image")
    (root / "train" / "a cat" / "notes.txt").write_text("no image")
    there = ImageFolder(kind="image_folder", root=address.plain, endpoint=address.endpoint, image_size=8)
    return ImageFolder(kind="image_folder", root=str(root), image_size=8), there


def test_a_bucket_is_a_folder(images: tuple[ImageFolder, ImageFolder]) -> None:
    here, there = images
    assert manifest_of(there) == manifest_of(here), "moving images changes no stage's name"
    for split in ("train", "val"):
        one, other = open_images(here, split), open_images(there, split)  # type: ignore[arg-type]
        assert other.labels == one.labels
        assert other.classes == one.classes
        keys = [(0, i) for i in range(len(one))]
        pixels = [BatchSource(x, here, None, 0, 0).__getitems__(keys)[0] for x in (one, other)]  # type: ignore[index]
        assert np.array_equal(pixels[0], pixels[1]), "same image, same number"
    few = open_images(there, "train").select([5, 2])
    assert few.bring is not None
    few.bring([0, 1])
    assert np.array_equal(few.read(0), open_images(here, "train").read(5))


def test_what_was_fetched_is_not_fetched_again(images: tuple[ImageFolder, ImageFolder], address: Address) -> None:
    _, there = images
    source = open_images(there, "val")
    with source.read(0) as image:
        before = np.asarray(image)
    for found in client(address).list_objects_v2(Bucket=address.bucket)["Contents"]:
        client(address).delete_object(Bucket=address.bucket, Key=found["Key"])
    with open_images(there, "val").read(0) as image:
        assert np.array_equal(np.asarray(image), before)
    with pytest.raises(DataError, match="has changed or is gone since the images were listed"):
        BatchSource(source, there, None, 0, 0).__getitems__([(0, 1)])


def test_an_image_that_changes_or_arrives_damaged(images: tuple[ImageFolder, ImageFolder], address: Address) -> None:
    folder = open_folder(str(address))
    file = next(f for f in folder.files() if f.path.startswith("val/"))
    client(address).put_object(Bucket=address.bucket, Key=address.key(file.path), Body=b"x" * file.size)
    with pytest.raises(StoreUnavailable, match="has changed"):
        folder.local(file)
    kept = [path for path in (cache_folder() / "images").rglob("*") if path.is_file()]
    assert kept == [], "nothing wrong is kept"
    assert next(f for f in folder.files() if f.path == file.path).etag == file.etag, (
        "for some minutes a node lists once"
    )
    assert next(f for f in folder.files(fresh=True) if f.path == file.path).etag != file.etag


def test_images_that_are_not_there(images: tuple[ImageFolder, ImageFolder]) -> None:
    _, there = images
    with pytest.raises(DataError, match=r"the val images are not there: nothing lies below s3://.*/nowhere/"):
        manifest_of(there.model_copy(update={"val": "nowhere"}))
    with pytest.raises(DataError, match="there is no bucket"):
        manifest_of(there.model_copy(update={"root": "s3://absent-bucket/x"}))
