"""Every spec of the library is valid, for the loader and for editors."""

from __future__ import annotations

import io
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from PIL import Image

from orchestrator.planning.make import make_plan
from specs.experiment import Experiment
from specs.load import json_schema, load
from strategies import registry

LIBRARY = Path(__file__).parents[2] / "specs" / "library"
SPECS = sorted(LIBRARY.rglob("*.yaml"))


class _Yaml(yaml.SafeLoader):
    """What an editor does with our tag: it takes the mapping as it is."""


_Yaml.add_constructor("!replace", lambda loader, node: loader.construct_mapping(node, deep=True))  # type: ignore[arg-type]
_Yaml.add_implicit_resolver(  # as in YAML 1.2, which editors use
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("0123456789")
)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    found = json_schema(registry.resolver(name) for name in registry.names())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Variable → a folder with as many classes, and two or five images of each."""
    return {
        "IMAGENET": image_folder(tmp_path_factory.mktemp("imagenet"), "val", classes=1000, images=2),
        "CIFAR10": image_folder(tmp_path_factory.mktemp("cifar10"), "test", classes=10, images=5),
    }


def image_folder(root: Path, val: str, classes: int, images: int) -> Path:
    """Images enough for a batch of the library's specs: 2,000 for 1,024, 50 for 32."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    for split in ("train", val):
        for i in range(classes):
            folder = root / split / f"n{i:08}"
            folder.mkdir(parents=True)
            for j in range(images):
                (folder / f"{j}.JPEG").write_bytes(image.getvalue())
    return root


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path], tmp_path: Path) -> None:
    for variable, folder in folders.items():
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("SLIMVIT_STORE", str(tmp_path / "store"))


def names(path: Path) -> str:
    return str(path.relative_to(LIBRARY))


@pytest.mark.parametrize("path", SPECS, ids=names)
def test_every_spec_is_valid(path: Path) -> None:
    experiment = load(path, resolver=registry.resolver).experiment
    assert experiment.description.endswith("?"), "a spec of the library asks something"
    assert load(path, resolver=registry.resolver).experiment == experiment


@pytest.mark.parametrize("path", SPECS, ids=names)
def test_every_spec_can_be_planned(path: Path, tmp_path: Path) -> None:
    store = f"storage.root={tmp_path / 'store'}"
    plan = make_plan(load(path, [store], resolver=registry.resolver))
    assert plan.combinations or plan.search is not None, "of a search, trials are proposed while it runs"
    assert not plan.dropped
    assert all(combination.measured_by in plan.stages for combination in plan.combinations)
    assert len(plan.stages) <= plan.stages_alone()


@pytest.mark.parametrize("path", SPECS, ids=names)
def test_the_schema_accepts_every_spec(path: Path, schema: jsonschema.Draft202012Validator) -> None:
    errors = [f"{list(e.absolute_path)}: {e.message}" for e in schema.iter_errors(yaml.load(path.read_text(), _Yaml))]
    assert not errors


def test_the_library_shows_all_strategies_and_names_are_unique() -> None:
    experiments = [load(path, resolver=registry.resolver).experiment for path in SPECS]
    assert len({e.name for e in experiments}) == len(experiments)
    used = {s.name for e in experiments for s in strategies_of(e)}
    assert used == set(registry.builtin_names())


def strategies_of(experiment: Experiment) -> list[object]:
    by_axis = [list(a.strategies.values()) for a in experiment.matrix.axes.values() if a.strategies is not None]
    return [s for stage in experiment.stages for s in stage.strategies] + [
        s for axis in by_axis for ss in axis for s in ss
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"nam": "x"},
        {"data": {"kind": "sampel"}},
        {"seed": "0"},
        {"stages": [{"name": "a", "training": {"epochs": -1}}]},
        {"stages": [{"name": "a", "strategies": [{"name": "respons"}]}]},
        {"stages": [{"name": "a", "strategies": [{"name": "response", "alpha": 2}]}]},
        {"stages": [{"name": "a", "strategies": [{"alpha": 0.5}]}]},
        {"student": {"args": {}}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(
    change: dict[str, object], schema: jsonschema.Draft202012Validator
) -> None:
    good = {"name": "x", "data": {"kind": "sample"}, "student": {"model": "m"}, "stages": [{"name": "a"}]}
    assert schema.is_valid(good)
    assert not schema.is_valid({**good, **change})


def test_a_spec_that_extends_needs_only_what_differs(schema: jsonschema.Draft202012Validator) -> None:
    assert schema.is_valid({"extends": "base.yaml", "student": {"args": {"depth": 3}}})
    assert not schema.is_valid({"student": {"args": {"depth": 3}}})
    assert not schema.is_valid({"extends": "base.yaml", "student": {"arg": {}}})
    assert not schema.is_valid({"extends": "base.yaml", "stages": [{"name": "a", "strategies": [{"name": "no"}]}]})


def test_every_field_is_described(schema: jsonschema.Draft202012Validator) -> None:
    for name, definition in schema.schema["$defs"].items():
        for field, described in definition.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field} has no docstring"
