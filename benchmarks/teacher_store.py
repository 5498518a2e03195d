"""How much faster a student trains on a stored teacher's answers than with the teacher beside it.

Three stages take turns, in the order A B C, C B A, …: the student alone, with its teacher in every step, and with the
teacher's answers from a store that was written before. All are whole training stages as `slimvit run` runs them, timed
over their training steps. The teacher's part of a step is gone at best, so the gain is bounded by
(time of student + time of teacher) / (time of student), the teacher's time being what the second stage reports. The
images are noise and the teacher is not trained: neither changes a time.

    python benchmarks/teacher_store.py --rounds 5
    python benchmarks/teacher_store.py --device cuda --image-size 224 --patch-size 16 --classes 1000 --images 8192 \\
        --batch-size 256 --loader-workers 12

Prints JSON: images/s of the three in every round, the gain (stored / online), the bound, and gain / bound (medians).
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import yaml
from PIL import Image

from cluster.local import LocalStore
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan, StoreStage, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from orchestrator.training.store_stage import run_store_stage
from specs.load import load
from strategies import registry

KINDS = ("alone", "online", "stored")


def write_images(root: Path, options: argparse.Namespace) -> None:
    """An image folder with `classes` classes of noise, one file written many times."""
    pixels = np.random.default_rng(0).integers(0, 256, (options.image_size, options.image_size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    each = -(-options.images // options.classes)
    for split, count in (("train", each), ("val", 1)):
        for c in range(options.classes):
            folder = root / split / f"{c:05}"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(buffer.getvalue())


def planned(folder: Path, options: argparse.Namespace) -> Plan:
    """Teacher, store, and three students a round."""
    size = {"patch_size": options.patch_size}
    spec = {
        "name": "teacher-store",
        "data": {
            "kind": "image_folder",
            "root": str(folder / "images"),
            "image_size": options.image_size,
            "limit_train": options.images,
            "limit_val": 64,
            "loader_workers": options.loader_workers,
        },
        "student": {"model": options.student, "args": size},
        "stages": [
            {
                "name": "teacher",
                "seed": 0,
                "model": {"model": options.teacher, "args": size},
                "training": {"epochs": 0},
            },
            {
                "name": "student",
                "teacher": {"stage": "teacher"},
                "training": {
                    "epochs": options.epochs,
                    "eval_every": options.epochs,
                    "batch_size": options.batch_size,
                    "precision": options.precision,
                    "augmentation": {"hflip": 0.5},
                },
            },
        ],
        "matrix": {
            "axes": {
                "kind": {
                    "set": {
                        "alone": {},
                        "online": {"stages.student.strategies": [{"name": "response"}]},
                        "stored": {
                            "stages.student.strategies": [{"name": "response"}],
                            "stages.student.teacher.stored": {"top_k": options.top_k},
                        },
                    }
                },
                "round": {"seeds": list(range(options.rounds + 1))},
            }
        },
        "resources": {"gpus_per_worker": int(options.device == "cuda")},
        "storage": {"root": str(folder / "store")},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return make_plan(load(path, resolver=registry.resolver))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640, help="training images of one epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--student", default="vit_tiny_patch16_224")
    parser.add_argument("--teacher", default="vit_small_patch16_224")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    device = "cuda:0" if options.device == "cuda" else "cpu"
    context = WorkerContext(device=device, threads=options.threads)
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    bounds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", options)
        plan = planned(folder, options)
        io_ = StageIO(LocalStore(folder / "store"), folder / "scratch")
        students = {(c.labels["kind"], c.seed): plan.stages[c.result] for c in plan.combinations}
        (stored,) = (stage for stage in plan.walk() if isinstance(stage, StoreStage))
        teacher = plan.stages[stored.parents[0]]
        assert isinstance(teacher, TrainStage), "a stage trains the teacher"
        run_train_stage(teacher, context, io_)
        written = run_store_stage(stored, context, io_)
        for turn in range(options.rounds + 1):
            results = {}
            for kind in KINDS[:: 1 if turn % 2 else -1]:
                student = students[kind, turn]
                assert isinstance(student, TrainStage), "a combination's result is a training stage"
                results[kind] = run_train_stage(student, context, io_)
            if turn:  # the first one warms up
                seconds = {k: r["steps"] * options.batch_size / r["images_per_s"] for k, r in results.items()}
                bounds.append((seconds["alone"] + results["online"]["teacher_seconds"]) / seconds["alone"])
                for kind in KINDS:
                    speeds[kind].append(results[kind]["images_per_s"])

    gains = [s / o for s, o in zip(speeds["stored"], speeds["online"], strict=True)]
    report = {
        "benchmark": "teacher_store",
        "gain": statistics.median(gains),
        "bound": statistics.median(bounds),
        "gain_over_bound": statistics.median(g / b for g, b in zip(gains, bounds, strict=True)),
        "wanted": 0.9,
        "gains": gains,
        "bounds": bounds,
        **{f"{kind}_images_per_s": found for kind, found in speeds.items()},
        "store": {"bytes": written["bytes"], "images_per_s": written["images_per_s"]},
        "conditions": vars(options)
        | {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
        | ({"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {}),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
