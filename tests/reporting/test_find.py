"""An experiment by spec file and by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.errors import StoreError, UsageError
from orchestrator.reporting.find import experiments, find_plan, latest_experiment

SPEC = """
name: tiny
data: {kind: sample, name: mnist5k}
student: {model: vit_tiny_patch16_224, args: {img_size: 28, patch_size: 7, embed_dim: 24, depth: 2, num_heads: 2}}
stages: [{name: train, training: {epochs: 1}}]
matrix: {axes: {seed: {seeds: [0, 1]}}}
"""


def keep_plan(lab: Any, when: str) -> None:
    folder = lab.root / "plan"
    folder.mkdir()
    (folder / "plan.json").write_text(lab.plan.model_dump_json())
    (folder / "experiment.json").write_text(lab.experiment.model_dump_json())
    lab.store.commit(f"plans/{lab.name}/{when}-0123456789ab", folder)


def test_by_name_the_latest_run_counts(lab: Any) -> None:
    keep_plan(lab, "20260101T000000Z")
    lab.experiment = lab.experiment.model_copy(update={"description": "later"})
    keep_plan(lab, "20260201T000000Z")
    found = find_plan("lab", lab.store.root)
    assert (found.plan, found.experiment) == (lab.plan, lab.experiment)
    assert found.experiment.description == "later"
    assert latest_experiment(lab.store) == lab.experiment
    assert experiments(lab.store) == ["lab"]


def test_by_spec_file(tmp_path: Path) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SPEC)
    found = find_plan(str(spec), tmp_path / "elsewhere", ["stages.0.training.epochs=2"])
    assert [c.seed for c in found.plan.combinations] == [0, 1]
    assert found.experiment.stages[0].training.epochs == 2
    assert isinstance(found.store, LocalStore)
    assert found.store.root == tmp_path / "elsewhere"
    assert find_plan(str(spec)).store.root == Path("slimvit-store").absolute()


def test_an_unknown_name_gets_the_nearest(lab: Any) -> None:
    keep_plan(lab, "20260101T000000Z")
    with pytest.raises(UsageError, match=r"no spec file `lav`.*did you mean `lab`\?.*It has: lab"):
        find_plan("lav", lab.store.root)


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(str(tmp_path))} has no experiment of that name. It has none"):
        find_plan("lab", tmp_path)
    with pytest.raises(UsageError, match="has no experiment"):
        latest_experiment(LocalStore(tmp_path))


def test_assignments_need_a_spec(lab: Any) -> None:
    with pytest.raises(UsageError, match="`--set` changes a spec"):
        find_plan("lab", lab.store.root, ["seed=1"])


def test_a_damaged_plan_is_named(lab: Any) -> None:
    keep_plan(lab, "20260101T000000Z")
    (lab.store.root / "plans/lab/20260101T000000Z-0123456789ab/plan.json").write_text("{}")
    with pytest.raises(StoreError, match="the plan `plans/lab/20260101T000000Z-0123456789ab`"):
        find_plan("lab", lab.store.root)
