"""The comparison against numbers computed independently from the stored rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import StoreError, UsageError
from orchestrator.planning.failed import FailureNotes
from orchestrator.planning.plan import MeasureStage, TrainStage
from orchestrator.reporting import conditions
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Cell, Comparison, Row
from orchestrator.reporting.front import front, with_axes
from orchestrator.reporting.notes import notes
from specs.measurement import MeasurementSpec
from specs.metrics import row

SLOW_MACHINE = {"device": "cpu", "precision": "fp32", "threads": 2, "versions": {"torch": "2.11.0"}}


def row_of(comparison: Comparison, merging: str, distill: str) -> Row:
    return next(r for r in comparison.rows if r.name == f"merging={merging},distill={distill}")


def stored(lab: Any, merging: str, distill: str, metric: str, batch_size: int | None = None) -> list[float]:
    """Values of all seeds, read from the files by hand."""
    values = []
    for seed in lab.seeds:
        digest = lab.combination(merging, distill, seed).measured_by
        rows = json.loads((lab.store.root / "stages" / digest / "rows.json").read_text())
        values += [
            r["value"] for r in rows if r["name"] == metric and batch_size in (None, r["conditions"].get("batch_size"))
        ]
    return values


def test_mean_and_spread_over_seeds(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    assert len(comparison.rows) == 6
    for merging in finished.merging:
        for distill in finished.distill:
            r = row_of(comparison, merging, distill)
            assert (r.status, r.seeds, r.measured, r.detail) == ("measured", (0, 1, 2), (0, 1, 2), "")
            for key, metric, size in (("top1", "top1", None), ("throughput_b64", "throughput", 64)):
                values = stored(finished, merging, distill, metric, size)
                cell = r.cells[key]
                assert cell.value == pytest.approx(np.mean(values), rel=1e-12)
                assert cell.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)
                assert (cell.num_seeds, sorted(cell.by_seed.values())) == (3, sorted(values))


def test_one_seed_has_no_spread(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(7,)).finish()
    cell = compare(lab.plan, lab.store).rows[0].cells["top1"]
    assert cell.std is None
    assert cell.by_seed == {7: cell.value}


def test_batch_sizes_are_columns(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    keys = [c.key for c in comparison.columns]
    assert [k for k in keys if k.startswith("throughput")] == [
        "throughput_b1",
        "throughput_b64",
        "throughput_ratio_b1",
        "throughput_ratio_b64",
    ]
    assert comparison.column("throughput_b1").ratio == "throughput_ratio_b1"
    assert comparison.column("latency_ms").ratio == "latency_ratio"
    assert comparison.find("throughput").key == "throughput_b64"
    assert keys.index("top1") < keys.index("macs") < keys.index("token_merging.kept")


def test_training_time_sums_all_stages_of_the_combination(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    r = row_of(comparison, "r2", "soft")
    stages = [finished.plan.stages[d] for d in finished.combination("r2", "soft").stages]
    expected = sum(10.0 + len(s.label) for s in stages if isinstance(s, TrainStage))
    assert r.cells["train_seconds"].value == pytest.approx(expected)
    assert r.cells["train_images_per_s"].value == 900.0


def test_best_and_pareto_by_brute_force(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    points = {r.name: (r.cells["top1"].value, r.cells["macs"].value) for r in comparison.rows}

    def beaten(name: str) -> bool:
        top1, macs = points[name]
        return any(a >= top1 and b <= macs and (a > top1 or b < macs) for a, b in points.values())

    assert {r.name for r in comparison.rows if r.pareto} == {name for name in points if not beaten(name)}
    assert {r.name for r in comparison.rows if r.pareto} == front(comparison, "top1", "macs")
    best = [r.name for r in comparison.rows if r.cells["top1"].best]
    assert best == [max(points, key=lambda name: points[name][0])]
    cheapest = min(macs for _, macs in points.values())
    assert {r.name for r in comparison.rows if r.cells["macs"].best} == {
        name for name, (_, macs) in points.items() if macs == cheapest
    }
    assert not any(r.cells["token_merging.kept"].best for r in comparison.rows)  # no direction
    assert not any(r.cells["params"].best for r in comparison.rows)  # all equal


def test_other_axes_move_the_front(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store, cost="throughput")
    assert (comparison.quality, comparison.cost) == ("top1", "throughput_b64")
    assert {r.name for r in comparison.rows if r.pareto} == front(comparison, "top1", "throughput_b64")
    again = with_axes(comparison, "macs")
    assert again.cost == "macs"
    assert again == compare(finished.plan, finished.store)


@pytest.mark.parametrize("axis", ["speed", "token_merging.kept"])
def test_an_axis_that_does_not_exist_is_refused(finished: Any, axis: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be an axis .* top1, .*macs"):
        compare(finished.plan, finished.store, cost=axis)


def test_missing_values_keep_their_reason(finished: Any) -> None:
    cell = compare(finished.plan, finished.store).rows[0].cells["peak_memory_mib"]
    assert cell == Cell(value=None, reason="no memory counter on this device")


def test_nothing_run_yet(lab: Any) -> None:
    comparison = compare(lab.plan, lab.store)
    assert {r.status for r in comparison.rows} == {"unfinished"}
    assert "seeds 0, 1, 2: 0 of 3 stages done; next is `teacher`" in comparison.rows[0].detail
    assert (comparison.quality, comparison.cost, comparison.columns) == (None, None, ())
    assert comparison.dropped == {"merging=all,distill=none": ("no token is left after block 3",)}


def test_failed_and_unfinished_combinations_are_listed(lab: Any) -> None:
    lab.finish(measured=lambda c: c.labels["merging"] == "none" or (c.labels["merging"] == "r2" and c.seed == 1))
    failed = lab.combination("r4", "soft", 0).measured_by
    comparison = compare(lab.plan, lab.store, failures={failed: "out of memory"})
    assert row_of(comparison, "none", "soft").status == "measured"
    partial = row_of(comparison, "r2", "none")
    assert (partial.status, partial.measured, partial.cells["top1"].num_seeds) == ("partial", (1,), 1)
    assert "seeds 0, 2: 2 of 3 stages done; next is `measure[merging=r2,distill=none]`" in partial.detail
    gone = row_of(comparison, "r4", "soft")
    assert gone.status == "failed"
    assert "seed 0: `measure[merging=r4,distill=soft]` failed: out of memory" in gone.detail
    assert gone.cells["top1"].value is None
    assert gone.cells["top1"].reason == gone.detail
    assert any("fewer seeds than planned" in note for note in comparison.notes)
    assert {s.status for s in comparison.stages} == {"done", "failed", "to run"}


def test_values_under_other_conditions_are_not_ranked_together(lab: Any) -> None:
    """r4 is measured on a slower machine: its latency looks worse, its MACs stay comparable."""
    lab.finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        other = c.labels["merging"] == "r4"
        lab.measure(c, lab.rows(c, SLOW_MACHINE) if other else None)
    comparison = compare(lab.plan, lab.store, cost="latency_ms")
    column = comparison.column("latency_ms")
    assert sorted(column.groups) == ["A", "B"]
    assert column.differences == {
        "threads": {"A": 1, "B": 2},
        "versions.torch": {"A": "2.14.1", "B": "2.11.0"},
    }
    assert any("latency_ms" in n and "threads: [A] 1, [B] 2" in n for n in comparison.notes)
    assert list(comparison.column("macs").groups) == ["A"]
    # Each group has a best and a front of its own.
    best = {r.cells["latency_ms"].group for r in comparison.rows if r.cells["latency_ms"].best}
    assert best == {"A", "B"}
    groups = {g: [r for r in comparison.rows if r.cells["latency_ms"].group == g] for g in "AB"}
    assert all({r.labels["merging"] for r in members} in ({"r4"}, {"none", "r2"}) for members in groups.values())
    assert all(any(r.pareto for r in members) for members in groups.values())


def test_accuracy_and_speed_in_other_precisions_are_said(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    assert not any("precision of training" in note for note in comparison.notes)
    stages = {
        digest: stage.model_copy(update={"measurement": MeasurementSpec(precision="bf16")})
        if isinstance(stage, MeasureStage)
        else stage
        for digest, stage in finished.plan.stages.items()
    }
    found = list(notes(comparison, finished.plan.model_copy(update={"stages": stages}), {}))
    (said,) = [note for note in found if "precision of training (fp32), time and memory in bf16" in note]
    assert f"of {len(finished.plan.combinations)} runs" in said


def test_seeds_under_other_conditions_stay_out_of_the_mean(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(merging=("none",), distill=("none",))
    lab.finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        lab.measure(c, lab.rows(c, SLOW_MACHINE) if c.seed == 1 else None)
    cells = compare(lab.plan, lab.store).rows[0].cells
    values = stored(lab, "none", "none", "latency_ms")
    assert cells["latency_ms"].value == pytest.approx(np.mean([values[0], values[2]]))
    assert cells["latency_ms"].reason == "left out of the mean: seed 1 was taken under conditions B"
    assert cells["top1"].num_seeds == 3


def test_a_seed_without_a_value_is_named(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(merging=("none",), distill=("none",), seeds=(0, 1))
    lab.finish(measured=lambda c: False)
    lab.measure(lab.combination("none", "none", 0))
    lab.measure(lab.combination("none", "none", 1), [row("top1", None, reason="NaN logits")])
    cells = compare(lab.plan, lab.store).rows[0].cells
    assert (cells["top1"].num_seeds, cells["top1"].reason) == (1, "left out of the mean: seed 1: NaN logits")


def test_json_round_trip_has_no_nan(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    text = comparison.model_dump_json()
    assert Comparison.model_validate_json(text) == comparison
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_unusable_running_time_is_missing_not_zero(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(merging=("none",), distill=("none",), seeds=(0,))
    for stage in lab.plan.walk():
        if isinstance(stage, TrainStage):
            lab.train(stage, seconds=math.nan, images_per_s=None)
    lab.measure(lab.plan.combinations[0])
    cells = compare(lab.plan, lab.store).rows[0].cells
    assert cells["train_seconds"].value is None
    assert "no running time" in cells["train_seconds"].reason
    assert cells["train_images_per_s"].value is None


def test_a_damaged_artefact_is_named(finished: Any) -> None:
    digest = finished.plan.combinations[0].measured_by
    (finished.store.root / "stages" / digest / "rows.json").write_text("[]")
    with pytest.raises(StoreError, match=f"`stages/{digest}` is damaged"):
        compare(finished.plan, finished.store)


def test_what_belongs_to_a_combination_keeps_nothing_apart() -> None:
    """Precision and batch size of training, and the input's size, are what is compared; the bench's are not."""
    one = {"images": "all", "precision": "fp32", "input_size": 28, "torch": "2.14.1"}
    other = one | {"precision": "bf16", "input_size": 56}
    assert (
        conditions.relevant("top1", one) == conditions.relevant("top1", other) == {"images": "all", "torch": "2.14.1"}
    )
    assert conditions.relevant("latency_ms", one) != conditions.relevant("latency_ms", other)
    assert conditions.relevant("macs", one) == {"images": "all"}
    nested = {"baseline": {"model": "vit_tiny_patch16_224", "args": {"img_size": 28}}}
    assert conditions.relevant("macs_ratio", nested) == {
        "baseline.model": "vit_tiny_patch16_224",
        "baseline.args.img_size": 28,
    }


def test_a_failure_is_known_later_too(lab: Any) -> None:
    lab.finish(measured=lambda c: c.labels["merging"] == "none")
    failed, done = lab.combination("r4", "soft", 0).measured_by, lab.combination("none", "soft", 0).measured_by
    notes = FailureNotes(lab.store)
    notes.put(failed, "measure", "the GPU's memory does not suffice")
    notes.put(done, "measure", "of an earlier try")
    comparison = compare(lab.plan, lab.store)
    gone = row_of(comparison, "r4", "soft")
    assert gone.status == "failed"
    assert "failed: the GPU's memory does not suffice" in gone.detail
    assert row_of(comparison, "none", "soft").status == "measured", "a result counts more than an old note"
    assert row_of(comparison, "r2", "soft").status == "unfinished"
