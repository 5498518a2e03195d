"""Other measurements of the same networks are those that the spec's own plan would make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.arguments import conditions, measured_under
from orchestrator.errors import DataError
from orchestrator.planning.make import make_plan
from orchestrator.planning.manifest import Manifests
from orchestrator.planning.plan import Plan
from orchestrator.planning.remeasure import measured_anew, measurement_of, with_measurements
from specs.load import load
from specs.problems import SpecProblems
from specs.resources import ResourcesSpec
from strategies.registry import resolver

SPEC = """
name: tiny
data: {kind: image_folder, root: images, image_size: 28}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 24, depth: 2, num_heads: 2}}
stages: [{name: train, training: {batch_size: 2}}]
matrix: {axes: {merging: {strategies: {none: [], r2: [{name: token_merging, r: 2}]}}, seed: {seeds: [0, 1]}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (28, 28), (i, 0, 0)).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(folder: Path, *assignments: str) -> Plan:
    return make_plan(load(folder / "spec.yaml", assignments, resolver=resolver))


def anew(plan: Plan, *texts: str, only: str | None = None) -> Plan:
    def measured_by(combination: Any) -> Any:
        stage = measurement_of(plan, combination)
        if only not in (None, combination.name):
            return stage
        return measured_anew(stage, measured_under(conditions(texts), stage.measurement), ResourcesSpec(), Manifests())

    return with_measurements(plan, plan.combinations, measured_by)


@pytest.mark.parametrize(
    ("texts", "assignments"),
    [
        (["threads=3,precision=bf16"], ["measurement.threads=3", "measurement.precision=bf16"]),
        (["batch_sizes=1;8"], ["measurement.batch_sizes=[1, 8]"]),
        (["batch_sizes=1", "batch_sizes=8,seconds=0.5"], ["measurement.batch_sizes=[1, 8]", "measurement.seconds=0.5"]),
        (["repeat=1"], ["measurement.repeat=1"]),
        (["device=cuda,compile=true"], ["measurement.device=cuda", "measurement.compile=true"]),
        (["baseline={model: deit_tiny_patch16_224}"], ["measurement.baseline={model: deit_tiny_patch16_224}"]),
        ([], []),
    ],
)
def test_conditions_are_the_specs_own(folder: Path, texts: list[str], assignments: list[str]) -> None:
    plan, wanted = planned(folder), planned(folder, *assignments)
    assert anew(plan, *texts) == wanted
    stored = Plan.model_validate_json(plan.model_dump_json(), context={"strategy_resolver": resolver})
    assert anew(stored, *texts) == wanted, "by name as by spec"


def test_a_restricted_plan_keeps_the_other_measurements(folder: Path) -> None:
    plan = planned(folder)
    changed = anew(plan, "threads=3", only="merging=r2")
    for before, after in zip(plan.combinations, changed.combinations, strict=True):
        assert after.stages[:-1] == before.stages[:-1]
        assert (after.measured_by == before.measured_by) == (before.name == "merging=none")
    assert set(changed.stages) == {digest for c in changed.combinations for digest in c.stages}


def test_images_that_changed_cannot_be_measured_on(folder: Path) -> None:
    plan = planned(folder)
    (folder / "images" / "val" / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match="have changed since they were planned"):
        anew(plan, "threads=2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thread=2", ["unknown key `thread`", "`threads`", "`batch_sizes`"]),
        ("precision=bf15", ["one of `fp32`, `bf16`, `fp16`", "`bf16`"]),
        ("batch_sizes=1;0", ["batch_sizes.1: must be greater than 0"]),
        ("threads=1;2", ["threads: must be a whole number"]),
        ("seconds=-1", ["seconds: must be greater than 0"]),
    ],
)
def test_misspelt_conditions_are_named(text: str, says: list[str], folder: Path) -> None:
    with pytest.raises(SpecProblems) as caught:
        anew(planned(folder), text)
    for words in says:
        assert words in str(caught.value)
    assert "in the spec" not in str(caught.value)
