"""Several experiments in one comparison, and why some cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.errors import UsageError
from orchestrator.planning.plan import MeasureStage
from orchestrator.reporting.compare import compare
from orchestrator.reporting.find import Found
from orchestrator.reporting.side_by_side import side_by_side


def found(lab: Any, **measure: Any) -> Found:
    stages = {d: s.model_copy(update=measure) if isinstance(s, MeasureStage) else s for d, s in lab.plan.stages.items()}
    return Found(lab.plan.model_copy(update={"stages": stages}), lab.experiment, lab.store)


@pytest.fixture
def two(lab_of: Any) -> tuple[Any, Any]:
    """Two finished experiments in one store."""
    one = lab_of(name="one", seeds=(0, 1), merging=("none", "r2")).finish()
    other = lab_of(name="other", seeds=(0, 1), merging=("none", "r2"))
    other.store = one.store
    return one, other.finish()


def test_rows_are_named_by_their_experiment_and_compared(two: tuple[Any, Any]) -> None:
    plan = side_by_side([found(lab) for lab in two])
    comparison = compare(plan, two[0].store)
    assert comparison.experiment == "one + other"
    assert len(comparison.rows) == 8
    assert comparison.rows[0].name == "experiment=one,merging=none,distill=none"
    alone = compare(two[1].plan, two[1].store)
    for r in alone.rows:
        (same,) = [q for q in comparison.rows if q.name == f"experiment=other,{r.name}"]
        assert same.cells["top1"].by_seed == r.cells["top1"].by_seed
    assert next(e.labels for e in comparison.effects if "experiment" in e.labels) == {"experiment": "other"}


def test_other_classes_are_refused(two: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"`one` tells 10 classes apart and `other` 100.*Compare each by itself"):
        side_by_side([found(two[0]), found(two[1], num_classes=100)])


def test_other_images_are_refused(two: tuple[Any, Any]) -> None:
    limited = two[1].experiment.data.model_copy(update={"limit_val": 100})
    with pytest.raises(UsageError, match="the images of `one` and `other` differ in limit_val"):
        side_by_side([found(two[0]), found(two[1], data=limited)])


def test_other_sizes_of_the_input_are_the_networks_own(two: tuple[Any, Any]) -> None:
    larger = two[1].experiment.data.model_copy(update={"image_size": 56})
    assert len(side_by_side([found(two[0]), found(two[1], data=larger)]).combinations) == 16


def test_named_twice_or_in_two_stores(two: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        side_by_side([found(two[0]), found(two[0])])
    with pytest.raises(UsageError, match=r"lie in different stores .*--store"):
        side_by_side([found(two[0]), found(two[1])._replace(store=LocalStore(tmp_path / "elsewhere"))])
