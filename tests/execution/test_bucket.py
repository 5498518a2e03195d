"""The whole line with everything in a bucket: images that workers fetch, stages that they commit, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cluster.cache import FOLDER_VARIABLE
from cluster.s3 import S3Store
from cluster.s3_client import client, objects
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS, s3_server
from tests.execution.test_run import slimvit

SPEC = """
name: tiny
data: {kind: image_folder, image_size: 16}
student: {model: vit_tiny_patch16_224, args: {patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2}}
stages:
  - {name: train, training: {epochs: 2, batch_size: 8, checkpoint_every_steps: 2}}
matrix:
  axes:
    merging: {strategies: {none: [], r2: [{name: token_merging, r: 2}]}}
measurement:
  {batch_sizes: [1], seconds: 0.05, images: 4, baseline: null, operating_points: {}, attempts: 1, max_drift: 1000}
"""
CLASSES, TRAIN, VAL = ("dark", "light"), 16, 6


def images(folder: Path) -> list[Path]:
    """Noise around two brightnesses, which a network tells apart after a few steps."""
    generator, made = np.random.default_rng(0), []
    for split, number in (("train", TRAIN), ("val", VAL)):
        for kind, low in zip(CLASSES, (0, 128), strict=True):
            (folder / split / kind).mkdir(parents=True)
            for i in range(number):
                made.append(folder / split / kind / f"{i}.png")
                Image.fromarray(generator.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)).save(made[-1])
    return made


@pytest.mark.ray
@pytest.mark.long
def test_images_stages_and_comparison_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (CREDENTIALS | {FOLDER_VARIABLE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    here = tmp_path / "images"
    made = images(here)
    with s3_server() as endpoint:
        data, place = Address("images", "some/set", endpoint), Address("runs", "tiny", endpoint)
        for address in (data, place):
            client(address).create_bucket(Bucket=address.bucket)
        for path in made:
            key = data.key(path.relative_to(here).as_posix())
            client(data).put_object(Bucket=data.bucket, Key=key, Body=path.read_bytes())
        spec = yaml.safe_load(SPEC)
        spec["data"] |= {"root": data.plain, "endpoint": endpoint}
        spec["storage"] = {"root": place.plain, "endpoint": endpoint}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

        first = slimvit(tmp_path, "run", "spec.yaml", "--plain")
        assert first.returncode == 0, first.stdout + first.stderr
        assert "2 of 2 combinations measured" in first.stdout
        fetched = list((tmp_path / "cache" / "images").rglob("*.png"))
        assert {p.read_bytes() for p in fetched} == {p.read_bytes() for p in made}, "each of them, by the workers"
        assert not (tmp_path / "slimvit-store").exists()

        store = S3Store(place)
        stages = set(store.names("stages"))
        assert len(stages) == 4, "two trained, two measured"
        assert list(store.names("progress")) == []
        assert store.inventory().leftovers == ()
        assert store.register().names() == []
        before = {each["Key"]: each["ETag"] for each in objects(place, place.below())}

        # Somewhere else, where nothing was fetched yet: all that the comparison needs is in the bucket.
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "other"))
        (tmp_path / "cache").rename(tmp_path / "gone")
        second = slimvit(tmp_path, "run", "spec.yaml", "--plain")
        assert second.returncode == 0, second.stdout + second.stderr
        assert "4 done, 0 to run" in second.stdout
        assert "LOADED []" in second.stdout
        table = [line for line in first.stdout.splitlines() if "merging=" in line and "top-1" not in line][-2:]
        assert all(line in second.stdout for line in table), "the same comparison"
        assert {each["Key"]: each["ETag"] for each in objects(place, place.below())} == before
        assert not list((tmp_path / "other").rglob("*.png")), "nor is any image read"

        # The same images on a disk are the same stages.
        spec["data"] = yaml.safe_load(SPEC)["data"] | {"root": str(here)}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        third = slimvit(tmp_path, "run", "spec.yaml", "--plain")
        assert third.returncode == 0, third.stdout + third.stderr
        assert "4 done, 0 to run" in third.stdout
        shown = slimvit(tmp_path, "compare", "tiny", "--store", str(place), "--format", "json")
        rows = json.loads(shown.stdout.split("LOADED")[0])["rows"]
        assert len(rows) == 2
        assert set(store.names("stages")) == stages
