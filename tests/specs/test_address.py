"""Addresses in specs: refused where they are none, and no secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.load import load
from specs.problems import SpecProblems
from strategies import registry

SPEC = """
name: tiny
data: {kind: sample}
student: {model: vit_tiny_patch16_224}
stages: [{name: train}]
"""


def said(tmp_path: Path, *assignments: str) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    with pytest.raises(SpecProblems) as caught:
        load(path, list(assignments), resolver=registry.resolver)
    return str(caught.value)


@pytest.mark.parametrize(
    "assignments",
    [
        ["storage.root=s3://key:topsecret@bucket/x"],
        ["storage.root=s3://bucket/x", "storage.endpoint=https://key:topsecret@host"],
    ],
)
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, assignments: list[str]) -> None:
    text = said(tmp_path, *assignments)
    assert "AWS_ACCESS_KEY_ID" in text
    assert "topsecret" not in text


def test_places_that_are_none(tmp_path: Path) -> None:
    assert "no place that slimvit knows" in said(tmp_path, "storage.root=gs://bucket/x")
    assert "goes with a `root` that begins with `s3://`" in said(tmp_path, "storage.endpoint=http://host:9000")


def test_a_bucket(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "storage: {root: 's3://bucket/x', endpoint: 'http://host:9000'}\n")
    storage = load(path, [], resolver=registry.resolver).experiment.storage
    assert (storage.root, storage.endpoint) == ("s3://bucket/x", "http://host:9000")
