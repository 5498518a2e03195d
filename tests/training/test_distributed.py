"""Several workers train what one worker trains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cluster.local import LocalStore
from orchestrator.reporting.stored import read_outcomes
from orchestrator.training.sources import open_images
from specs.data import Sample
from strategies import registry
from tests.training.two_workers import run_on_two_workers


def history(store, stage):
    text = (store.fetch(f"stages/{stage.digest}") / "history.jsonl").read_text()
    return [json.loads(line)["values"] for line in text.splitlines()]


def test_two_workers_follow_the_curve_of_one(make_stage, run, tmp_path):
    # 27 validation images over two workers: 14 and 13, in uneven last batches.
    data = Sample(kind="sample", limit_train=96, limit_val=27)
    mixing = {"mixup": 0.4, "cutmix": 1.0, "crop_padding": 2, "random_erasing": 0.3}
    exits = registry.resolver("early_exit").model_validate({"name": "early_exit", "blocks": (1,), "threshold": 0.12})
    stage = make_stage(
        strategies=(exits,),
        data=data,
        epochs=2,
        batch_size=24,
        micro_batch=6,
        clip_grad=1.0,
        ema=0.9,
        augmentation=mixing,
    )
    one, two = LocalStore(tmp_path / "one"), run_on_two_workers(stage, tmp_path)
    run(stage, store=one)
    for alone, together in zip(history(one, stage), history(two, stage), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
        assert 0 < alone["early_exit.exited_1"] < 1
        for name in ("val_top1", "val_top5", "early_exit.exited_1"):
            assert together[name] == pytest.approx(alone[name])

    # No image twice, none left out: of every class exactly those that there are.
    counts = [read_outcomes(where.fetch(f"stages/{stage.digest}")) for where in (one, two)]
    assert np.array_equal(counts[1].confusion.sum(axis=1), np.bincount(open_images(data, "val").labels))
    assert np.array_equal(counts[0].confusion, counts[1].confusion)
    assert np.array_equal(counts[0].bins[:, :2], counts[1].bins[:, :2])
    assert counts[1].ece == pytest.approx(counts[0].ece)
    result = json.loads((two.fetch(f"stages/{stage.digest}") / "result.json").read_text())
    assert result["device_hours"] == pytest.approx(2 * result["seconds"] / 3600)
