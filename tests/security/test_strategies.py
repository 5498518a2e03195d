"""A spec names strategies by their registered names; nothing that it says makes Python import anything else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from specs.load import load
from specs.problems import SpecProblems
from strategies import registry

SPEC = {
    "name": "tiny",
    "data": {"kind": "sample"},
    "student": {"model": "vit_tiny_patch16_224"},
    "stages": [{"name": "train"}],
}


@pytest.mark.parametrize(
    "name",
    [
        "planted:Planted",
        "planted.Planted",
        "planted",
        "strategies.dynamic.token_merging:TokenMerging",
        "../planted",
        "os:system",
        "__import__('planted')",
        "",
    ],
)
def test_an_import_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('this was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "spec.yaml"
    for spec in (
        {**SPEC, "stages": [{"name": "train", "strategies": [{"name": name}]}]},
        {**SPEC, "matrix": {"axes": {"a": {"strategies": {"x": [{"name": name}]}}}}},
    ):
        path.write_text(yaml.safe_dump(spec))
        with pytest.raises(SpecProblems) as refused:
            load(path, resolver=registry.resolver)
        assert "strateg" in str(refused.value)
    assert "planted" not in sys.modules


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system"])
def test_yaml_makes_no_objects(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC) + f"description: {tag}\n")
    with pytest.raises(SpecProblems):
        load(path, resolver=registry.resolver)


def test_every_name_comes_from_an_entry_point() -> None:
    assert registry.names()
    assert {e.group for found in registry._registered(tuple(sys.path)).values() for e in found} == {
        "slimvit.strategies"
    }
