"""One stage from start to artefact."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from timm import create_model
from torch._inductor import config as inductor

from orchestrator.compiler import without_compiler
from orchestrator.errors import DataError, ResourceError, SlimvitError, SpecError, StoreError
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.checkpoint import load_network, read_tensors
from orchestrator.training.interface import Progress, WorkerContext
from specs.data import Sample
from specs.model import ModelSpec
from strategies import registry


def config(name: str, **options):
    return registry.resolver(name).model_validate({"name": name, **options})


def weights_of(store, stage):
    return read_tensors(store.fetch(f"stages/{stage.digest}") / "model.safetensors")


def losses(store, stage):
    lines = (store.fetch(f"stages/{stage.digest}") / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["values"]["loss"] for line in lines]


def test_a_stage_learns_and_leaves_a_whole_artefact(make_stage, run, store):
    data = Sample(kind="sample", limit_train=1000, limit_val=200)
    schedule = {"warmup_epochs": 1.0}
    stage = make_stage(data=data, epochs=4, batch_size=20, optimizer={"lr": 3e-3}, schedule=schedule)
    said: list[Progress] = []
    result = run(stage, report=said.append)
    assert result["metrics"]["val_top1"] > 40  # chance is 10
    assert result["metrics"]["val_top1"] <= result["metrics"]["val_top5"] <= 100
    assert (result["epochs"], result["steps"]) == (4, 200)
    curve = losses(store, stage)
    assert len(curve) == 4
    assert curve[-1] < curve[0] < 1.05 * math.log(10)

    folder = store.fetch(f"stages/{stage.digest}")
    assert json.loads((folder / "result.json").read_text()) == result
    assert json.loads((folder / "model.json").read_text())["num_classes"] == 10
    assert json.loads((folder / "stage.json").read_text())["digest"] == stage.digest
    assert said[0].kind == "start"
    assert [p.step for p in said if p.kind == "epoch"] == [50, 100, 150, 200]
    # timm's keys: any timm user can load the weights.
    create_model("vit_tiny_patch16_224", **stage.student.model.args).load_state_dict(weights_of(store, stage))


def test_a_finished_stage_is_not_trained_again(make_stage, run):
    stage = make_stage()
    first = run(stage)
    said: list[Progress] = []
    assert run(stage, report=said.append) == first
    assert said == []


def test_progress_left_behind_by_a_killed_worker_is_cleared(make_stage, run, store, tmp_path):
    stage = make_stage()
    run(stage)
    left = tmp_path / "left"
    left.mkdir()
    (left / "progress.json").write_text("{}")
    store.commit(f"progress/{stage.digest}/000000005", left)
    run(stage)
    assert list(store.names(f"progress/{stage.digest}")) == []


def test_no_epochs_assembles_and_evaluates(make_stage, run, store):
    parent = make_stage()
    run(parent)
    stage = make_stage(epochs=0, student=NetworkSource(stage=parent.digest), strategies=(config("token_merging", r=2),))
    said: list[Progress] = []
    result = run(stage, report=said.append)
    assert (result["steps"], result["images_per_s"]) == (0, None)
    assert [p.kind for p in said] == ["start"]
    before, after = weights_of(store, parent), weights_of(store, stage)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert load_network(store.fetch(f"stages/{stage.digest}")).tokens  # the strategy came along


def test_accumulation_equals_the_whole_batch(make_stage, run, store):
    options = {"batch_size": 32, "epochs": 1, "augmentation": {"mixup": 0.5, "cutmix": 1.0, "crop_padding": 2}}
    whole, parts = make_stage(**options), make_stage(**options, micro_batch=4)
    run(whole), run(parts)
    assert losses(store, parts) == pytest.approx(losses(store, whole), rel=1e-4)
    assert losses(store, make_and_run(make_stage, run, **options, seed=1)) != pytest.approx(
        losses(store, whole), rel=1e-4
    )


def make_and_run(make_stage, run, **options):
    stage = make_stage(**options)
    run(stage)
    return stage


def test_the_average_of_the_weights_is_what_is_saved(make_stage, run, store):
    """decay² w1 + decay (1 − decay) w2 + (1 − decay) w3, from the weights after each of three steps."""
    data = Sample(kind="sample", limit_train=48, limit_val=20)
    options = {"data": data, "schedule": {"name": "constant"}}
    steps = []
    for epochs in (1, 2, 3):  # one step an epoch; with a constant rate a longer run begins like a shorter one
        steps.append(weights_of(store, make_and_run(make_stage, run, **options, batch_size=48, epochs=epochs)))
    decay = 0.7
    averaged = weights_of(store, make_and_run(make_stage, run, **options, batch_size=48, epochs=3, ema=decay))
    for name, value in averaged.items():
        w1, w2, w3 = (s[name] for s in steps)
        expected = decay**2 * w1 + decay * (1 - decay) * w2 + (1 - decay) * w3
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_bf16_trains_near_fp32(make_stage, run, store):
    full = make_and_run(make_stage, run, epochs=2)
    half = make_and_run(make_stage, run, epochs=2, precision="bf16")
    assert losses(store, half) == pytest.approx(losses(store, full), rel=0.02)
    assert losses(store, half) != losses(store, full)
    assert all(w.dtype == torch.float32 for w in weights_of(store, half).values())


def test_label_smoothing_raises_the_loss_by_its_definition(make_stage, run, store):
    """One step at fresh weights: CE against (1 − s) one-hot + s / C, worked out by hand."""
    data = Sample(kind="sample", limit_train=20, limit_val=20)
    plain = make_and_run(make_stage, run, data=data, batch_size=20, epochs=1)
    smoothed = make_and_run(make_stage, run, data=data, batch_size=20, epochs=1, label_smoothing=0.4)
    from orchestrator.training.data import BatchSource
    from orchestrator.training.network import assemble
    from orchestrator.training.sources import open_images

    student = assemble(plain, store, torch.device("cpu")).student
    images, labels = BatchSource(open_images(data, "train"), data, None, 0, 0).__getitems__([(0, i) for i in range(20)])
    log_p = student.train()(images).logits.log_softmax(1)
    hard = -log_p[torch.arange(20), labels].mean()
    spread = -log_p.mean(1).mean()
    assert losses(store, plain)[0] == pytest.approx(hard.item(), rel=1e-5)
    assert losses(store, smoothed)[0] == pytest.approx((0.6 * hard + 0.4 * spread).item(), rel=1e-5)


def test_a_teacher_teaches(make_stage, run, store):
    teacher = make_and_run(make_stage, run, epochs=2, optimizer={"lr": 3e-3})
    stage = make_stage(teacher=NetworkSource(stage=teacher.digest), strategies=(config("response"),))
    said: list[Progress] = []
    run(stage, report=said.append)
    values = next(p for p in said if p.kind == "epoch").values
    assert any(name.startswith("response.") for name in values)
    before = weights_of(store, teacher)
    assert load_network(store.fetch(f"stages/{stage.digest}")) is not None
    assert all(torch.equal(before[k], v) for k, v in weights_of(store, teacher).items())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_training_follows_the_eager_one(make_stage, run, store):
    options = {"data": Sample(kind="sample", limit_train=64, limit_val=20), "batch_size": 16}
    eager = make_and_run(make_stage, run, **options, args={"depth": 1})
    compiled = make_and_run(make_stage, run, **options, args={"depth": 1}, compile=True)
    assert losses(store, compiled) == pytest.approx(losses(store, eager), rel=1e-3)
    assert weights_of(store, compiled).keys() == weights_of(store, eager).keys()


def test_without_a_compiler_people_read_what_to_install(make_stage, run, store, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    nowhere = inductor.patch({"cpp.cxx": ("/nonexistent/c++",)})
    with nowhere, pytest.raises(RuntimeError) as caught:
        make_and_run(make_stage, run, compile=True)
    assert re.search(r"no compiler .*/nonexistent/c\+\+.*install it, or", str(without_compiler(caught.value)))
    assert without_compiler(RuntimeError("anything else")) is None


def test_pruned_shapes_and_heads_travel_to_the_next_stage(make_stage, run, store):
    exits = config("early_exit", blocks=(1,))
    first = make_and_run(make_stage, run, strategies=(config("structured_pruning", ratio=0.5), exits))
    second = make_stage(epochs=0, student=NetworkSource(stage=first.digest), strategies=(exits,))
    run(second)
    before, after = weights_of(store, first), weights_of(store, second)
    assert any(k.startswith("extras.early_exit.") for k in before)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    shapes = load_network(store.fetch(f"stages/{second.digest}")).shapes
    assert shapes
    assert shapes == load_network(store.fetch(f"stages/{first.digest}")).shapes


def test_a_loss_that_is_no_number_names_stage_step_and_term(make_stage, run, store):
    stage = make_stage(optimizer={"name": "sgd", "lr": 1e30}, checkpoint_every_steps=1, schedule={"name": "constant"})
    with pytest.raises(SlimvitError, match=r"stage `student`: the loss is not finite at step [1-4]: loss = .*task = "):
        run(stage)
    assert list(store.names("stages")) == []
    assert list(store.names("progress"))  # what was sound before is kept


def test_weights_that_cannot_be_downloaded(make_stage, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    source = NetworkSource(model=ModelSpec(model="vit_tiny_patch16_224", args={"num_classes": 10}, pretrained=True))
    with pytest.raises(SpecError, match="weights are downloaded at the first use"):
        run(make_stage(student=source))


def test_fp16_without_a_gpu(make_stage, run):
    with pytest.raises(ResourceError, match="fp16"):
        run(make_stage(precision="fp16"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 200}, DataError, "160 training images, fewer than `training.batch_size` 200"),
        ({"num_classes": 7}, DataError, "10 classes, but the stage was planned for 7"),
        ({"args": {"num_classes": 7}}, SpecError, "tells 7 classes apart, and the data has 10"),
        ({"args": {"in_chans": 3}}, SpecError, "takes 3 channels"),
        ({"args": {"img_size": 35}}, SpecError, "takes images of 35 px"),
        ({"student": NetworkSource(checkpoint="/nowhere/x.safetensors")}, StoreError, "no checkpoint at /nowhere"),
        ({"student": NetworkSource(stage="0" * 64)}, StoreError, "earlier stage cannot be used"),
        ({"batch_size": 15, "augmentation": {"mixup": 1.0}}, SpecError, "15 is odd"),
    ],
)
def test_what_does_not_fit_is_refused(make_stage, run, options, error, message):
    with pytest.raises(error, match=message):
        run(make_stage(**options))


def test_a_teacher_with_other_classes_is_refused(make_stage, run):
    teacher = NetworkSource(
        model=ModelSpec(model="vit_tiny_patch16_224", args={**make_stage().student.model.args, "num_classes": 7})
    )
    with pytest.raises(SpecError, match="7 classes and the student"):
        run(make_stage(teacher=teacher, strategies=(config("response"),)))


def test_one_worker_cannot_be_three(make_stage, run):
    with pytest.raises(SpecError, match="cannot be shared by 3 workers"):
        run(make_stage(batch_size=16), WorkerContext(world_size=3))
