"""Stages that could not train are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import PlanError
from orchestrator.planning.feasible import cannot_start, worker_counts
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan
from specs.load import load
from specs.resources import ResourcesSpec
from strategies.registry import resolver


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        ({"precision": "fp16"}, {}, "`training.precision: fp16` needs a GPU"),
        ({"precision": "fp16"}, {"resources": {"gpus_per_worker": 1}}, None),
        ({"batch_size": 4001}, {}, "4001 is more than the 4000 training images.*at most 4000"),
        ({"batch_size": 4000}, {}, None),
        ({"batch_size": 101}, {"data": {"kind": "sample", "limit_train": 100}}, "more than the 100 training images"),
        ({"batch_size": 101, "epochs": 0}, {"data": {"kind": "sample", "limit_train": 100}}, None),
    ],
)
def test_what_cannot_train_is_refused(
    training: dict[str, Any], more: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    if message is None:
        assert plan(training, more, tmp_path).combinations
    else:
        with pytest.raises(PlanError, match=message):
            plan(training, more, tmp_path)


@pytest.mark.parametrize(
    ("training", "workers", "message"),
    [
        ({"batch_size": 15}, 2, "15 cannot be shared by 2 workers"),
        ({"batch_size": 24, "micro_batch": 8}, 2, "a multiple of 16"),
        ({"batch_size": 16, "micro_batch": 8}, 2, None),
        ({"batch_size": 15, "augmentation": {"mixup": 0.8}}, 1, "and 15 is odd"),
    ],
)
def test_workers_that_cannot_share_a_batch_matter_only_to_what_is_to_run(
    training: dict[str, Any], workers: int, message: str | None, tmp_path: Path
) -> None:
    planned = plan(training, {"resources": {"workers": workers}}, tmp_path)
    reasons = cannot_start(planned, planned.stages.keys(), ResourcesSpec(workers=workers))
    assert [message in reason for reason in reasons.values()] == [True] if message else reasons == {}
    assert cannot_start(planned, [], ResourcesSpec(workers=workers)) == {}


@pytest.mark.parametrize(
    ("training", "fewest", "most", "counts"),
    [
        ({"batch_size": 24}, 1, 9, (1, 2, 3, 4, 6, 8)),
        ({"batch_size": 24, "augmentation": {"mixup": 0.8}}, 1, 9, (1, 2, 3, 4, 6)),
        ({"batch_size": 24, "micro_batch": 4}, 2, 9, (2, 3, 6)),
        ({"batch_size": 24}, 9, 11, ()),
    ],
)
def test_elastic_workers_share_every_batch(
    training: dict[str, Any], fewest: int, most: int, counts: tuple[int, ...], tmp_path: Path
) -> None:
    planned = plan(training, {}, tmp_path)
    resources = ResourcesSpec.model_validate({"workers": {"min": fewest, "max": most}})
    train, measure = planned.walk()
    assert worker_counts(train, resources) == counts
    assert worker_counts(measure, resources) == tuple(range(fewest, most + 1)), "a measurement has no batch to share"
    reasons = cannot_start(planned, planned.stages.keys(), resources)
    assert list(reasons) == ([] if counts else [train.digest])
    assert all("no number of workers from 9 to 11" in reason for reason in reasons.values())


def plan(training: dict[str, Any], more: dict[str, Any], folder: Path) -> Plan:
    data = {
        "name": "tested",
        "data": {"kind": "sample"},
        "student": {"model": "vit_tiny_patch16_224", "args": {"patch_size": 4}},
        "stages": [{"name": "train", "training": training}],
        **more,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return make_plan(load(folder / "spec.yaml", resolver=resolver))
