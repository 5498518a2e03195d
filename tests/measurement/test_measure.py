"""Rows of the command and of a stage, from real networks; numbers of the clock are only checked for their form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from cluster.local import LocalStore
from orchestrator.errors import ResourceError, StoreError, UsageError
from orchestrator.measurement import command, timing
from orchestrator.measurement.conditions import Settings, in_force
from orchestrator.measurement.counted import COUNTED, PASSES
from orchestrator.measurement.images import random_images, validation_images
from orchestrator.measurement.measure import MEASURABLE, Measurement
from orchestrator.measurement.network import Recipe, strategy_of
from orchestrator.measurement.stage import run_measure_stage
from orchestrator.planning.plan import MeasureStage, NetworkSource, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from specs.data import Sample
from specs.measurement import MeasurementSpec
from specs.metrics import MetricRow
from specs.model import ModelSpec
from specs.training import TrainingSpec

DATA = Sample(kind="sample", limit_train=40, limit_val=100)
MODEL = ModelSpec(
    model="vit_tiny_patch16_224",
    args={
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "num_classes": 10,
    },
)
BASELINE = ModelSpec(model="vit_tiny_patch16_224", args={"embed_dim": 96, "depth": 2})
COUNTS = ("params", "macs", "checkpoint_mib", "params_ratio", "macs_ratio", "checkpoint_ratio")


def train_stage(*options: dict, epochs: int = 0) -> TrainStage:
    return TrainStage(
        digest="a" * 64,
        label="student",
        digest_parts={"data": {"manifest": "0" * 64}},
        parents=(),
        student=NetworkSource(model=MODEL),
        teacher=None,
        strategies=tuple(strategy_of(o).config for o in options),
        training=TrainingSpec(epochs=epochs, batch_size=20),
        data=DATA,
        num_classes=10,
        seed=0,
    )


def measure_stage(**spec: object) -> MeasureStage:
    measurement = MeasurementSpec(
        **{"batch_sizes": [1, 8], "seconds": 0.05, "images": 12, "baseline": BASELINE, **spec}
    )
    return MeasureStage(
        digest="b" * 64,
        label="measure",
        digest_parts={"data": {"manifest": "0" * 64}},
        parents=("a" * 64,),
        measurement=measurement,
        data=DATA,
        num_classes=10,
        input_size=28,
    )


def run(
    tmp_path: Path, measure: MeasureStage, *options: dict, epochs: int = 0
) -> tuple[LocalStore, dict[tuple[str, object], MetricRow]]:
    store = LocalStore(tmp_path / "store")
    run_train_stage(train_stage(*options, epochs=epochs), WorkerContext(), StageIO(store, tmp_path / "train"))
    run_measure_stage(measure, WorkerContext(), StageIO(store, tmp_path / "measure"))
    content = (store.fetch("stages/" + "b" * 64) / "rows.json").read_bytes()
    rows = TypeAdapter(list[MetricRow]).validate_json(content)
    return store, {(r.name, r.conditions.get("batch_size")): r for r in rows}


def test_a_stage_commits_every_metric(tmp_path: Path) -> None:
    store, rows = run(tmp_path, measure_stage(), {"name": "token_merging", "r": 2}, epochs=1)
    taken = {name for name, _ in rows}
    assert taken >= {*MEASURABLE, "top1", "top5", "train_images_per_s"}
    assert {("throughput", 1), ("throughput", 8), ("throughput_ratio", 8), ("peak_memory_mib", 8)} <= set(rows)
    for (name, _), row in rows.items():
        if row.value is None:
            # What not every machine tells, and a percentile that few calls do not have.
            assert name.startswith(("energy", "peak_memory", "train_memory", "latency_p99"))
            assert row.reason
        else:
            assert row.value is not None, name
            assert math.isfinite(row.value), name
            assert row.value > 0 or row.unit == "%"
            assert row.reason is None
        assert row.conditions["input_size" if not name.startswith("train") else "device"]
        assert ("baseline" in row.conditions) == (name.endswith("_ratio") and row.value is not None)
        assert len(row.samples) <= 200
    assert rows["token_merging.tokens_kept", None].value == 17 - 3 * 2
    result = json.loads((store.fetch("stages/" + "b" * 64) / "result.json").read_text())
    assert result["metrics"]["throughput@8"] == rows["throughput", 8].value
    assert (
        rows["top1", None].value
        == json.loads((store.fetch("stages/" + "a" * 64) / "result.json").read_text())["metrics"]["val_top1"]
    )
    training = rows["train_memory_mib", 20]
    assert training.value is None or training.value == pytest.approx(sum(training.summary.values()))
    timed = rows["latency_ms", 1].conditions
    assert {"device", "precision", "compile", "threads", "attention", "malloc", "torch", "timm"} <= set(timed)
    assert rows["latency_ratio", 1].conditions["baseline"]["args"]["patch_size"] == 7  # type: ignore[index,call-overload]


def test_exits_are_measured_on_the_images(tmp_path: Path) -> None:
    options = {"name": "early_exit", "blocks": [0], "threshold": 0.12}
    store, rows = run(tmp_path, measure_stage(batch_sizes=[4], baseline=None), options)
    macs = rows["macs", None]
    assert macs.summary["count"] == len(macs.samples) == 12
    assert macs.value == pytest.approx(sum(macs.samples) / 12)
    assert rows["latency_ms", 1].summary["count"] % 12 == 0, "whole passes over the images"
    left = rows["early_exit.exited_0", None].value
    assert left is not None
    cheapest, dearest = min(macs.samples), max(macs.samples)
    expected = dearest if left == 0 else left * cheapest + (1 - left) * dearest
    assert macs.value == pytest.approx(expected)

    for name in ("activations", "active_params", "arithmetic_intensity"):
        assert rows[name, None].summary["count"] == 12
    assert rows["active_params", None].value <= rows["params", None].value
    for name in ("train_images_per_s", "train_memory_mib"):
        (row,) = (r for (n, _), r in rows.items() if n == name)
        assert (row.value, row.reason) == (None, "the stage trains for 0 epochs")

    # A second run takes nothing again.
    before = (store.fetch("stages/" + "b" * 64) / "rows.json").read_bytes()
    run_measure_stage(measure_stage(), WorkerContext(), StageIO(store, tmp_path / "again"))
    assert (store.fetch("stages/" + "b" * 64) / "rows.json").read_bytes() == before
    ratios = [r for r in json.loads(before) if r["name"].endswith("_ratio")]
    assert all(r["value"] is None for r in ratios)
    assert all("null" in r["reason"] for r in ratios if r["name"] != "energy_ratio")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match=r"a{64}"):
        run_measure_stage(measure_stage(), WorkerContext(), StageIO(store, tmp_path / "scratch"))
    if not torch.cuda.is_available():
        run_train_stage(train_stage(), WorkerContext(), StageIO(store, tmp_path / "train"))
        with pytest.raises(ResourceError, match="no GPU"):
            run_measure_stage(measure_stage(device="cuda"), WorkerContext(), StageIO(store, tmp_path / "scratch"))


def test_a_batch_that_does_not_fit_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger batch needs more than any machine has; the smaller one is measured all the same."""
    huge = 2_000_000_000_000
    rows = Measurement(
        student=Recipe(model=MODEL),
        baseline=None,
        no_baseline="none wanted",
        images=random_images(4, (1, 28, 28)),
        images_are="random images",
        settings=Settings(torch.device("cpu"), batch_sizes=(2, huge), seconds=0.02),
        wanted=frozenset({"throughput", "throughput_ratio", "peak_memory_mib"}),
    ).run()
    found = {(r.name, r.conditions["batch_size"]): (r.value, r.reason) for r in rows}
    assert found["throughput", huge] == (None, f"does not fit at batch {huge}")
    assert found["peak_memory_mib", huge] == (None, f"does not fit at batch {huge}")
    assert found["throughput", 2][0] is not None
    assert found["throughput_ratio", 2] == (None, "none wanted")
    assert ("peak_memory_mib", 2) in found


def test_what_cannot_be_counted_is_said() -> None:
    """The images are larger than the network takes; sizes are counted all the same."""
    rows = Measurement(
        student=Recipe(model=MODEL),
        baseline=Recipe(model=MODEL),
        no_baseline="",
        images=random_images(2, (1, 32, 32)),
        images_are="random images",
        settings=Settings(torch.device("cpu"), precision="bf16", batch_sizes=(1,)),
        wanted=frozenset(COUNTED),
    ).run()
    found = {r.name: r for r in rows}
    for name in PASSES:
        assert found[name].value is None
        assert "a pass cannot be counted" in found[name].reason
    assert found["params"].value == found["weights_mib"].value * 2**20 / 2


def test_the_same_network_is_its_own_equal() -> None:
    """Every ratio that is counted is 1; those of the clock are near it, with a wide margin for a busy machine."""
    rows = Measurement(
        student=Recipe(model=MODEL),
        baseline=Recipe(model=MODEL),
        no_baseline="",
        images=random_images(8, (1, 28, 28)),
        images_are="random images",
        settings=Settings(torch.device("cpu"), batch_sizes=(8,), seconds=0.3),
        wanted=frozenset(n for n in MEASURABLE if n.endswith("_ratio")) - {"peak_memory_ratio", "energy_ratio"},
    ).run()
    for row in rows:
        if row.name in COUNTS:
            assert row.value == 1
        else:
            assert row.value is not None
            assert 0.1 < row.value < 10
            assert len(row.samples) >= timing.MIN_BLOCKS


def test_torch_is_left_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        with in_force(Settings(torch.device("cpu"), threads=threads + 1)) as conditions:
            assert conditions["threads"] == threads + 1
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads
    finally:
        torch.use_deterministic_algorithms(False)


def test_images_come_from_the_whole_set_in_its_order() -> None:
    all_of_them = validation_images(DATA, 1000)
    assert len(all_of_them) == 100
    assert torch.equal(validation_images(DATA, 10), all_of_them[::10])


def test_command_counts_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timing, "time_alternately")
    options = [strategy_of({"name": "token_merging", "r": 2}).config]
    rows = command.measure_model(MODEL, options, device="cpu", only=["params", "macs"])
    printed = json.loads(command.as_json(rows))
    assert [(r["name"], r["unit"], r["direction"]) for r in printed] == [
        ("params", "parameters", "lower"),
        ("macs", "MACs/image", "lower"),
    ]
    assert "random weights" in printed[1]["conditions"]["images"]
    table = command.as_text(rows)
    assert f"{printed[0]['value']:,.0f}" in table


def test_command_leaves_out_what_only_trains() -> None:
    teaching = [strategy_of({"name": name}).config for name in ("response", "feature")]
    (plain,), (taught,) = (command.measure_model(MODEL, s, only=["params"], device="cpu") for s in ([], teaching))
    assert plain == taught


def test_command_refuses_by_name() -> None:
    with pytest.raises(UsageError, match=r"`top1`.*`slimvit compare`"):
        command.measure_model(MODEL, only=["top1"])
    with pytest.raises(ValueError, match="vit_tiny_patch16_224"):
        command.measure_model(ModelSpec(model="vit_tinny_patch16_224"))
    with pytest.raises(ValueError, match="block"):
        command.measure_model(MODEL, [strategy_of({"name": "token_merging", "blocks": [99]}).config], only=["params"])
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no GPU"):
            command.measure_model(MODEL, device="cuda")
