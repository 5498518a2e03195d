"""Stored teachers: written by workers that may die, read in place of the teacher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cluster.local import LocalStore
from orchestrator.errors import PlanError, StoreError
from orchestrator.measurement.training_memory import FetchedStages, Training, read_stage, training_peak
from orchestrator.planning.describe import as_json, as_text
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import StoreStage, TrainStage
from orchestrator.planning.stored import no_room
from orchestrator.reporting.compare import compare
from orchestrator.reporting.training_cost import training_rows
from orchestrator.training.answers import compress
from orchestrator.training.checkpoint import WEIGHTS, read_tensors
from orchestrator.training.interface import StageInterrupted, StageIO, WorkerContext
from orchestrator.training.shards import FILE, Epoch, artefact, commit_shard, shards_of_epoch
from orchestrator.training.stage import run_train_stage
from orchestrator.training.store_stage import run_store_stage
from specs.load import load
from strategies import registry

SCRIPT = Path(__file__).with_name("run_stage.py")
ROOT = Path(__file__).parents[2]
TINY = {"patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}
SEEN = {"crop_padding": 2, "random_erasing": 0.3}
MIXED = {**SEEN, "mixup": 0.4, "cutmix": 1.0}
SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.0}


@pytest.fixture
def document(tmp_path):
    """A spec with a teacher stage and a student that learns its answers; keywords go to the student's stage."""

    def make(stored=None, axes=None, seed=0, strategies=({"name": "response", "alpha": 0.9},), **training):
        teacher = {"stage": "teacher"} | ({} if stored is None else {"stored": stored})
        schedule = {"epochs": 2, "batch_size": 24, "optimizer": SGD, "augmentation": SEEN, **training}
        spec = {
            "name": "tested",
            "seed": seed,
            "data": {"kind": "sample", "limit_train": 100, "limit_val": 20},
            "student": {"model": "vit_tiny_patch16_224", "args": TINY},
            "stages": [
                {"name": "teacher", "seed": 0, "training": {"epochs": 1, "batch_size": 20, "optimizer": SGD}},
                {"name": "student", "teacher": teacher, "training": schedule, "strategies": list(strategies)},
            ],
            "matrix": {"axes": axes or {}},
            "storage": {"root": str(tmp_path / "store")},
        }
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        return load(path, resolver=registry.resolver)

    return make


@pytest.fixture
def do(tmp_path, store):
    """Run stages that train or store in this process, in the plan's order."""

    def run(plan, context=None, upto=None, **io):
        results = {}
        for stage in plan.walk():
            if isinstance(stage, TrainStage | StoreStage):
                runner = run_store_stage if isinstance(stage, StoreStage) else run_train_stage
                files = StageIO(**{"store": store, "scratch": tmp_path / "scratch", **io})
                results[stage.digest] = runner(stage, context or WorkerContext(), files)
            if isinstance(stage, upto or ()):
                break
        return results

    return run


def the_store(plan) -> StoreStage:
    (stage,) = [stage for stage in plan.walk() if isinstance(stage, StoreStage)]
    return stage


def weights(store, plan, position=0):
    return read_tensors(store.fetch(f"stages/{plan.combinations[position].result}") / "model.safetensors")


# Planning


def test_students_of_all_seeds_and_losses_share_one_store(document):
    axes = {
        "seed": {"seeds": [0, 1, 2]},
        "kind": {"path": "stages.student.strategies.response.kind", "values": ["soft", "hard"]},
        "batch": {"path": "stages.student.training.batch_size", "values": [20, 24]},
    }
    plan = make_plan(document({"top_k": 5}, axes))
    stored = the_store(plan)
    teacher = plan.stages[stored.parents[0]]
    students = [plan.stages[c.result] for c in plan.combinations]
    assert len({s.digest for s in students}) == 12
    assert all(s.parents == (stored.digest,) and s.teacher.store == stored.digest for s in students)
    assert all(c.stages[:2] == (teacher.digest, stored.digest) for c in plan.combinations)
    assert {s.images_seed for s in students} == {0}


@pytest.mark.parametrize(
    ("path", "values", "shared"),
    [
        ("stages.student.teacher.stored.top_k", [3, 4], False),
        ("stages.student.teacher.stored.seed", [3, 4], False),
        ("stages.student.training.epochs", [1, 2], False),
        ("stages.student.training.augmentation.hflip", [0.0, 0.5], False),
        ("stages.student.training.optimizer.lr", [0.1, 0.2], True),
    ],
)
def test_what_a_store_is_bound_to(document, path, values, shared):
    plan = make_plan(document({"top_k": 5}, {"it": {"path": path, "values": values}}))
    stores = [stage for stage in plan.walk() if isinstance(stage, StoreStage)]
    assert len(stores) == (1 if shared else 2)


def test_mixed_images_bind_a_store_to_the_batch(document):
    axis = {"it": {"path": "stages.student.training.batch_size", "values": [20, 24]}}
    plan = make_plan(document({"top_k": 5}, axis, augmentation=MIXED))
    answers = {stage.num_answers for stage in plan.walk() if isinstance(stage, StoreStage)}
    assert answers == {100, 96}  # the last, incomplete batch is answered by nobody


def test_only_logits_can_be_stored(document):
    with pytest.raises(PlanError, match=r"`feature`.*nothing but the logits. Way out: leave `teacher.stored` out"):
        make_plan(document({"top_k": 5}, strategies=[{"name": "feature"}]))
    with pytest.raises(PlanError, match=r"top_k` is 11, and the teacher knows 10 classes. Way out: at most 10"):
        make_plan(document({"top_k": 11}))
    # A student without teacher needs no store.
    alone = make_plan(document({"top_k": 5}, strategies=[]))
    assert not [stage for stage in alone.walk() if isinstance(stage, StoreStage)]


def test_the_plan_shows_the_size_first(document, tmp_path):
    written = document({"top_k": 5})
    plan = make_plan(written)
    size = 100 * 2 * (5 * 3 + 2 + 4)
    assert the_store(plan).num_bytes == size
    text = as_text(plan, written.experiment)
    assert "stored:teacher" in text
    assert "4.2 kB" in text
    assert "taught by stored:teacher:top5" in text
    assert "Stored teachers: 4.2 kB; 4.2 kB to write" in text
    counted = json.loads(as_json(plan, written.experiment))["stored_bytes"]
    assert (counted["all"], counted["to_write"]) == (size, size)


# Writing and reading


@pytest.mark.parametrize("augmentation", [SEEN, MIXED], ids=["alone", "mixed"])
def test_with_all_classes_the_student_is_that_of_the_living_teacher(document, do, store, augmentation):
    options = {"augmentation": augmentation, "micro_batch": 12}
    online, stored = (make_plan(document(how, **options)) for how in (None, {"top_k": 10}))
    do(online), do(stored)
    wanted, found = weights(store, online), weights(store, stored)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-5)
    start = make_plan(document(None, epochs=0, **options))
    do(start)
    moved = max((wanted[k] - v).abs().max().item() for k, v in weights(store, start).items())
    assert moved > 1e-2  # the tolerance is far below what training does


def test_another_seed_learns_from_the_same_answers(document, do, store):
    plan = make_plan(document({"top_k": 3}, {"seed": {"seeds": [0, 1]}}, augmentation=MIXED))
    results = do(plan)
    stored = the_store(plan)
    assert results[stored.digest]["images"] == 96 * 2
    assert results[stored.digest]["shards"] == 2
    first, second = weights(store, plan, 0), weights(store, plan, 1)
    assert not torch.equal(first["head.weight"], second["head.weight"])
    costs = {cost.kind: cost for cost in compare(plan, store).stages}
    assert [costs[kind].status for kind in ("train", "store", "measure")] == ["done", "done", "to run"]
    assert costs["store"].seconds == costs["store"].teacher_seconds == results[stored.digest]["seconds"]
    rows = {r.name: r.value for r in training_rows(plan, plan.combinations[0], results)}
    alone = sum(results[d]["seconds"] for d in plan.combinations[0].stages[:-1])
    assert rows["train_seconds"] == pytest.approx(alone)
    assert 0 < rows["teacher_share"] < 100


def test_shards_are_as_large_as_the_plan_says(document, do, store, monkeypatch):
    monkeypatch.setattr("orchestrator.planning.stored.IMAGES_PER_SHARD", 40)
    plan = make_plan(document({"top_k": 5}))
    do(plan, upto=StoreStage)
    stage = the_store(plan)
    shards = list(store.names(f"answers/{stage.digest}"))
    assert len(shards) == 2 * 3
    header = 8 + 400
    total = sum((store.fetch(name) / FILE).stat().st_size for name in shards)
    assert stage.num_bytes < total < stage.num_bytes + len(shards) * header
    epoch = Epoch(stage, 1, store)
    asked = [99, 0, 41, 40, 39]
    together = epoch.look_up(asked)
    for row, image in enumerate(asked):
        for column, alone in zip(together, epoch.look_up([image]), strict=True):
            assert torch.equal(column[row], alone[0])
    with pytest.raises(StoreError, match="no answer to image 100 in epoch 1"):
        epoch.look_up([3, 100])


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, torch.uint8), (60_000, torch.uint16), (70_000, torch.int32)])
def test_a_shard_gives_back_the_highest_class(document, store, tmp_path, num_classes, dtype):
    plan = make_plan(document({"top_k": 2}))
    stage = the_store(plan).model_copy(update={"num_classes": num_classes, "num_answers": 3})
    (shard,) = shards_of_epoch(stage, 0)
    logits = torch.randn(3, num_classes, generator=torch.Generator().manual_seed(0))
    logits[1, -1] = 20.0
    answers = compress(logits, 2)
    commit_shard(store, stage, shard, torch.tensor([5, 900, 0], dtype=torch.int32), answers, 1.0, tmp_path / "shard")
    assert read_tensors(store.fetch(artefact(stage, shard)) / FILE)["classes"].dtype == dtype
    found = Epoch(stage, 0, store).look_up([0, 900, 5])
    assert torch.equal(found.classes, answers.classes.flip(0))
    assert found.classes[1, 0] == num_classes - 1


def in_processes(stage, store, tmp_path, kill_at=0, world_size=1):
    file = tmp_path / "stage.json"
    file.write_text(stage.model_dump_json())
    meet = tmp_path / f"meet{kill_at}{world_size}"
    return [
        subprocess.Popen(
            [
                sys.executable,
                SCRIPT,
                file,
                store.root,
                tmp_path / "processes",
                str(kill_at),
                str(rank),
                str(world_size),
                meet,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


@pytest.mark.chaos
@pytest.mark.long
def test_killed_writers_lose_only_the_shard_under_way(document, do, store, tmp_path):
    plan = make_plan(document({"top_k": 4}, epochs=4))
    stage = the_store(plan)
    do(plan, upto=TrainStage)
    (killed,) = in_processes(stage, store, tmp_path, kill_at=8)  # 5 batches an epoch: in the second
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    assert [name.rsplit("/")[-1] for name in store.names(f"answers/{stage.digest}")] == ["00000-00000"]
    assert not store.committed(f"stages/{stage.digest}")

    for process in in_processes(stage, store, tmp_path, world_size=2):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert store.committed(f"stages/{stage.digest}")

    undisturbed = LocalStore(tmp_path / "undisturbed")
    do(plan, store=undisturbed, upto=StoreStage)
    names = list(store.names(f"answers/{stage.digest}"))
    assert len(names) == 4
    assert names == list(undisturbed.names(f"answers/{stage.digest}"))
    for name in names:
        one, two = (read_tensors(where.fetch(name) / FILE) for where in (store, undisturbed))
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["classes"].int(), two["classes"].int())
        torch.testing.assert_close(one["log_probability"], two["log_probability"])


def test_a_stop_keeps_finished_shards_and_the_next_run_goes_on(document, do, store):
    plan = make_plan(document({"top_k": 4}))
    stage = the_store(plan)
    do(plan, upto=TrainStage)
    asked = iter(range(100))
    with pytest.raises(StageInterrupted, match="a stop was asked for"):
        do(plan, upto=StoreStage, should_stop=lambda: next(asked) >= 6)
    with pytest.raises(StageInterrupted, match="deadline"):
        do(plan, WorkerContext(deadline_s=0), upto=StoreStage)
    said = []
    do(plan, upto=StoreStage, report=said.append)
    of_store = [p for p in said if p.stage == stage.digest]
    assert [(p.kind, p.step, p.total_steps) for p in of_store if p.kind != "step"] == [
        ("resumed", 5, 10),
        ("epoch", 10, 10),
    ]


def test_too_little_room_is_said_before_anything_is_written(document, do, store):
    class Full(LocalStore):
        def free_bytes(self):
            return 1_000

    plan = make_plan(document({"top_k": 4}))
    do(plan, upto=TrainStage)
    with pytest.raises(StoreError, match=r"3\.6 kB of answers are to be written, and .* has 1\.0 kB free. Way out"):
        do(plan, upto=StoreStage, store=Full(store.root))
    assert list(store.names("answers")) == []
    (reason,) = no_room(plan, set(plan.stages), Full(store.root))
    assert reason.startswith("`stored:teacher:top4`: 3.6 kB of answers are to be written")
    assert no_room(plan, {stage for stage in plan.stages if stage != the_store(plan).digest}, Full(store.root)) == []


def test_training_memory_is_measured_without_the_teacher(document, do, store):
    plans = [make_plan(document(how)) for how in (None, {"top_k": 4})]
    peaks = []
    for plan in plans:
        do(plan)
        job = Training(plan.stages[plan.combinations[0].result], store).job(threads=1)
        stages = FetchedStages(job.parents)
        peaks.append(training_peak(read_stage(json.dumps(job.stage)), stages, torch.device("cpu"), job.batch_size, 1))
    online, stored = peaks
    teacher = read_tensors(
        store.fetch(f"stages/{plans[0].stages[plans[0].combinations[0].stages[0]].digest}") / WEIGHTS
    )
    assert online.weights - stored.weights == sum(t.numel() * t.element_size() for t in teacher.values())


def test_other_images_than_the_teacher_saw_are_an_error_that_says_what_differs(document, do, store):
    plan = make_plan(document({"top_k": 4}))
    do(plan, upto=StoreStage)
    student = plan.stages[plan.combinations[0].result]
    training = student.training.model_copy(
        update={"augmentation": student.training.augmentation.model_copy(update={"hflip": 0.5})}
    )
    files = StageIO(store, store.root / "scratch")
    with pytest.raises(StoreError, match=r"augmentation.hflip: 0.0 → 0.5"):
        run_train_stage(student.model_copy(update={"training": training}), WorkerContext(), files)
    with pytest.raises(StoreError, match=r"\n  seed: 0 → 7"):
        run_train_stage(student.model_copy(update={"images_seed": 7}), WorkerContext(), files)

    # A shard that is damaged names itself, and what to delete.
    stage = the_store(plan)
    file = store.fetch(f"answers/{stage.digest}/00000-00000") / FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\xff\xff")
    with pytest.raises(StoreError, match=rf"(?s)00000-00000.*delete that shard and the folder `stages/{stage.digest}`"):
        run_train_stage(student, WorkerContext(), files)
