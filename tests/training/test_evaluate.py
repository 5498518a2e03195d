"""The final evaluation of a stage, and what cannot be evaluated."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.errors import DataError, SlimvitError
from orchestrator.planning.plan import NetworkSource
from orchestrator.reporting.stored import read_outcomes
from orchestrator.training.checkpoint import load_network
from orchestrator.training.data import validation_loader
from specs.data import Sample


def test_the_artefact_holds_the_counts(make_stage, run, store):
    stage = make_stage(ema=0.5, optimizer={"lr": 3e-3})
    metrics = run(stage)["metrics"]
    folder = store.fetch(f"stages/{stage.digest}")
    found = read_outcomes(folder)
    network = load_network(folder)  # the averaged weights, which are those that are evaluated
    expected = np.zeros((10, 10), dtype=int)
    with torch.no_grad():
        for images, labels in validation_loader(stage.data, 64, torch.device("cpu")):
            for label, prediction in zip(labels.tolist(), network(images).logits.argmax(1).tolist(), strict=True):
                expected[label, prediction] += 1
    assert np.array_equal(found.confusion, expected)
    assert found.classes == tuple("0123456789")
    assert (found.top1, found.ece) == (metrics["val_top1"], metrics["val_ece"])


def test_answers_that_are_no_numbers_have_no_accuracy(make_stage, run, store, tmp_path):
    parent = make_stage()
    run(parent)
    weights = load_file(store.fetch(f"stages/{parent.digest}") / "model.safetensors")
    weights["head.bias"][3] = torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    source = NetworkSource(checkpoint=str(tmp_path / "broken.safetensors"), model=parent.student.model)
    broken = make_stage(epochs=0, student=source)
    message = r"stage `student`: .* 50 of 50 validation images with logits that are not finite .*`optimizer.lr`"
    with pytest.raises(SlimvitError, match=message):
        run(broken)
    assert list(store.names("stages")) == [f"stages/{parent.digest}"]


def test_validation_images_of_one_class_are_refused(make_stage, run, store):
    with pytest.raises(DataError, match=r"all 1 validation images are of the class `0`.*`data.limit_val`"):
        run(make_stage(data=Sample(kind="sample", limit_train=160, limit_val=1)))
    assert list(store.names("")) == []


def test_a_class_without_images_is_left_out(make_stage, run, store):
    stage = make_stage(data=Sample(kind="sample", limit_train=160, limit_val=6))
    run(stage)
    shares = read_outcomes(store.fetch(f"stages/{stage.digest}")).top1_by_class()
    assert [name for name, share in shares.items() if share is None] == ["6", "7", "8", "9"]


def test_the_teachers_part_of_the_time(make_stage, run, store):
    teacher = make_stage()
    alone = run(teacher)
    assert alone["teacher_seconds"] == 0
    assert alone["device_hours"] == pytest.approx(alone["seconds"] / 3600)
    from strategies import registry

    soft = registry.resolver("response").model_validate({"name": "response"})
    taught = run(make_stage(teacher=NetworkSource(stage=teacher.digest), strategies=(soft,)))
    assert 0 < taught["teacher_seconds"] < taught["seconds"]


def test_history_has_the_calibration_too(make_stage, run, store):
    stage = make_stage(epochs=2, eval_every=2)
    run(stage)
    lines = (store.fetch(f"stages/{stage.digest}") / "history.jsonl").read_text().splitlines()
    assert ["val_ece" in json.loads(line)["values"] for line in lines] == [False, True]
