"""One trained network at several settings of its knob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.local import LocalStore
from orchestrator.measurement.network import Recipe, load_deployed, strategy_of
from orchestrator.measurement.operating import Accuracy
from orchestrator.measurement.stage import run_measure_stage
from orchestrator.planning.plan import MeasureStage, NetworkSource, TrainStage
from orchestrator.reporting.stored import read_outcomes, read_points, read_rows
from orchestrator.training.data import validation_loader
from orchestrator.training.interface import StageInterrupted, StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from specs.data import Sample
from specs.measurement import MeasurementSpec
from specs.metrics import MetricRow
from specs.model import ModelSpec
from specs.training import TrainingSpec

DATA = Sample(kind="sample", limit_train=200, limit_val=70)
ARGS = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
MODEL = ModelSpec(model="vit_tiny_patch16_224", args=ARGS)
TRAINED, MEASURED = "a" * 64, "b" * 64


def trained(tmp_path: Path, *options: dict[str, Any], **training: Any) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    stage = TrainStage(
        digest=TRAINED,
        label="student",
        digest_parts={"data": {"manifest": "0" * 64}},
        parents=(),
        student=NetworkSource(model=MODEL),
        teacher=None,
        strategies=tuple(strategy_of(o).config for o in options),
        training=TrainingSpec.model_validate({"epochs": 2, "batch_size": 20, **training}),
        data=DATA,
        num_classes=10,
        seed=0,
    )
    run_train_stage(stage, WorkerContext(), StageIO(store, tmp_path / "train"))
    return store


def measure_stage(points: dict[str, list[float]], **spec: Any) -> MeasureStage:
    conditions = {"batch_sizes": [1, 8], "seconds": 0.02, "images": 12, "baseline": MODEL, **spec}
    return MeasureStage(
        digest=MEASURED,
        label="measure",
        digest_parts={"data": {"manifest": "0" * 64}},
        parents=(TRAINED,),
        measurement=MeasurementSpec(**conditions),
        data=DATA,
        num_classes=10,
        input_size=28,
        operating_points=points,
    )


def by_name(rows: list[MetricRow]) -> dict[str, MetricRow]:
    assert len({r.name for r in rows}) == len(rows), "each metric once"
    return {r.name: r for r in rows}


def value(row: MetricRow) -> float:
    assert row.value is not None, row.reason
    return row.value


def test_a_trained_network_is_a_curve(tmp_path: Path) -> None:
    store = trained(tmp_path, {"name": "token_merging", "r": 2}, ema=0.5)
    sweep = {"token_merging.r": [0.0, 2.0, 5.0]}
    run_measure_stage(measure_stage(sweep), WorkerContext(), StageIO(store, tmp_path / "measure"))
    folder = store.fetch(f"stages/{MEASURED}")
    points = read_points(folder)
    assert [(p.knob, p.setting, p.trained) for p in points] == [
        ("token_merging.r", 0, False),
        ("token_merging.r", 2, True),
        ("token_merging.r", 5, False),
    ]
    metrics = [by_name(p.rows) for p in points]
    for point in metrics:
        assert set(point) == {"top1", "macs", "throughput", "throughput_ratio", "latency_ms"}
        assert point["throughput"].conditions["batch_size"] == 8
        assert all(r.value is not None for r in point.values())
    assert value(metrics[0]["macs"]) > value(metrics[1]["macs"]) > value(metrics[2]["macs"])
    # Without merging it is the plain network, which costs what its baseline (the same network) costs.
    plain = by_name([r for r in read_rows(folder) if r.name in ("macs", "macs_ratio")])
    assert value(metrics[0]["macs"]) == pytest.approx(value(plain["macs"]) / value(plain["macs_ratio"]))

    # The trained setting's numbers are the combination's own.
    own = [r for r in read_rows(folder) if r.name in metrics[1] and r.conditions.get("batch_size") in (None, 8)]
    assert {r.name for r in own} >= {"top1", "macs", "throughput", "throughput_ratio"}
    assert all(metrics[1][r.name] == r for r in own)

    # Each accuracy against a loop over the same weights with another option.
    artefact = store.fetch(f"stages/{TRAINED}")
    for point, found in zip(points, metrics, strict=True):
        network = load_deployed(artefact, {point.knob: point.setting}).network
        hits = 0
        with torch.no_grad():
            for images, labels in validation_loader(DATA, 64, torch.device("cpu")):
                out = network(images)
                assert out.num_tokens == tokens(int(point.setting))
                hits += int((out.logits.argmax(1) == labels).sum())
        assert found["top1"].value == 100 * hits / 70


def tokens(r: int) -> list[int]:
    """Tokens after each of three blocks: the class token and 16 patches, of which at most half are merged a block."""
    left, counts = 16, []
    for _ in range(3):
        left -= min(r, left // 2)
        counts.append(left + 1)
    return counts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_turning_to_the_trained_setting_changes_nothing(tmp_path: Path, precision: str) -> None:
    store = trained(tmp_path, {"name": "early_exit", "blocks": [0, 1], "threshold": 0.3}, precision=precision, ema=0.9)
    artefact = store.fetch(f"stages/{TRAINED}")
    stage = TrainStage.model_validate_json(
        json.dumps(json.loads((artefact / "stage.json").read_text()) | {"strategies": []})
    )
    accuracy = Accuracy(stage, artefact, DATA, torch.device("cpu"), 1)
    outcomes = read_outcomes(artefact)
    assert outcomes is not None
    row = accuracy.top1_at({"early_exit.threshold": 0.3})
    assert row.value == outcomes.top1
    assert row.conditions["precision"] == precision


def test_an_exit_threshold_moves_who_leaves(tmp_path: Path) -> None:
    store = trained(tmp_path, {"name": "early_exit", "blocks": [0], "threshold": 0.3})
    sweep = {"early_exit.threshold": [0.0, 0.3, 1.0]}
    stage = measure_stage(sweep, baseline=None, batch_sizes=[4])
    run_measure_stage(stage, WorkerContext(), StageIO(store, tmp_path / "measure"))
    never, bold = (by_name(p.rows) for p in read_points(store.fetch(f"stages/{MEASURED}"))[::-2])
    assert len(set(never["macs"].samples)) == len(set(bold["macs"].samples)) == 1, "nobody leaves, or everybody does"
    assert value(bold["macs"]) < value(never["macs"])
    assert never["throughput_ratio"].value is None
    assert "null" in str(never["throughput_ratio"].reason)


def test_a_setting_that_training_found_is_on_the_curve(tmp_path: Path) -> None:
    store = trained(tmp_path, {"name": "early_exit", "blocks": [0], "target_macs": 0.7})
    artefact = store.fetch(f"stages/{TRAINED}")
    result = json.loads((artefact / "result.json").read_text())
    threshold, top1 = result["metrics"]["early_exit.threshold"], result["metrics"]["val_top1"]
    assert 0 < threshold < 1
    stage = measure_stage({"early_exit.threshold": [0.0, 1.0]}, baseline=None, batch_sizes=[4], images=70)
    run_measure_stage(stage, WorkerContext(), StageIO(store, tmp_path / "measure"))
    folder = store.fetch(f"stages/{MEASURED}")
    points = read_points(folder)
    assert [(p.setting, p.trained) for p in points] == [(0, False), (threshold, True), (1, False)]
    bold, own, never = (by_name(p.rows) for p in points)
    assert own["top1"].value == top1
    assert own["macs"] == by_name([r for r in read_rows(folder) if r.name == "macs"])["macs"]
    # On all validation images, what is measured is what training promised; the exit's own head costs 48 · 10.
    whole = value(never["macs"]) - 48 * 10
    assert value(own["macs"]) / whole == pytest.approx(result["targets"]["early_exit"]["expected_macs"])
    assert value(bold["macs"]) < value(own["macs"]) <= 0.7 * whole


def test_a_setting_whose_answers_are_no_numbers_says_so(tmp_path: Path) -> None:
    """The exit is broken and the network is not: with the threshold at 1, as trained, nobody sees it."""
    store = trained(tmp_path, {"name": "early_exit", "blocks": [1], "threshold": 1.0}, epochs=0)
    artefact = store.fetch(f"stages/{TRAINED}")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in artefact.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(artefact / "model.safetensors")
    weights["extras.early_exit.1.fc.bias"][0] = -torch.inf
    save_file(weights, broken / "model.safetensors")
    stage = TrainStage.model_validate_json(
        json.dumps(json.loads((artefact / "stage.json").read_text()) | {"strategies": []})
    )
    accuracy = Accuracy(stage, broken, DATA, torch.device("cpu"), 1)
    assert accuracy.top1_at({"early_exit.threshold": 1.0}).value is not None
    row = accuracy.top1_at({"early_exit.threshold": 0.0})
    assert row.value is None
    assert "`student early_exit.threshold=0`: the network answers 70 of 70" in str(row.reason)


def test_a_measurement_stops_between_points(tmp_path: Path) -> None:
    store = trained(tmp_path, {"name": "token_merging", "r": 2}, epochs=0)
    calls = iter([False, False, True])
    io = StageIO(store, tmp_path / "measure", should_stop=lambda: next(calls))
    stage = measure_stage({"token_merging.r": [0.0, 2.0, 5.0]}, baseline=None, batch_sizes=[4])
    with pytest.raises(StageInterrupted):
        run_measure_stage(stage, WorkerContext(), io)
    assert not store.committed(f"stages/{MEASURED}")


def test_a_recipe_travels_with_its_settings(tmp_path: Path) -> None:
    """A second process, which measures memory, builds the network that was meant."""
    store = trained(tmp_path, {"name": "token_merging", "r": 0}, epochs=0)
    recipe = Recipe(artefact=store.fetch(f"stages/{TRAINED}"), turned={"token_merging.r": 4})
    network = Recipe.model_validate_json(recipe.model_dump_json()).build().network
    with torch.no_grad():
        assert network(torch.randn(2, 1, 28, 28)).num_tokens == tokens(4)
