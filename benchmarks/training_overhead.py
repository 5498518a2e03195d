"""How fast a stage trains, against a training loop written by hand: same network, images, batch size, threads.

Both loops run in one process, in alternation (ABBA), so that a machine that warms up or slows down does the same to
both. The hand-written loop is the least that trains: images decoded and normalised beforehand, a `DataLoader`, forward,
cross-entropy, backward, AdamW. The stage adds data order and randomness by seed, the schedule, the finiteness check,
progress reports and the vote on stopping; loading, evaluation and the final artefact are outside both timings.

    python benchmarks/training_overhead.py --rounds 5

Prints JSON: images/s of both in every round, and the ratio stage / hand-written (median over the rounds).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from cluster.local import LocalStore
from orchestrator.planning.plan import NetworkSource, TrainStage
from orchestrator.training.data import BatchSource
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.sources import open_images
from orchestrator.training.stage import run_train_stage
from specs.data import Sample
from specs.model import ModelSpec
from specs.training import TrainingSpec


def hand_written(
    model_spec: ModelSpec, images: torch.Tensor, labels: torch.Tensor, training: TrainingSpec, device: torch.device
) -> float:
    """Images a second of one epoch of the minimal loop."""
    model = timm.create_model(model_spec.model, **model_spec.args).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.optimizer.lr)
    loader = DataLoader(TensorDataset(images, labels), batch_size=training.batch_size, shuffle=True, drop_last=True)
    model.train()
    start, steps = time.perf_counter(), 0
    for x, y in loader:
        loss = F.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * training.batch_size / (time.perf_counter() - start)


def stage(
    model_spec: ModelSpec, data: Sample, training: TrainingSpec, device: str, threads: int, folder: Path, name: str
) -> float:
    """Images a second of one epoch of the same training as a stage."""
    train_stage = TrainStage(
        digest=name,
        label="benchmark",
        digest_parts={},
        parents=(),
        student=NetworkSource(model=model_spec),
        teacher=None,
        strategies=(),
        training=training,
        data=data,
        num_classes=10,
        seed=0,
    )
    io = StageIO(LocalStore(folder / "store"), folder / "scratch")
    result = run_train_stage(train_stage, WorkerContext(device=device, threads=threads), io)
    return float(result["images_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=960, help="training images of one epoch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    args = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    model_spec = ModelSpec.model_validate({"model": options.model, "args": args})
    data = Sample(kind="sample", limit_train=options.images, limit_val=10)
    training = TrainingSpec(epochs=1, batch_size=options.batch_size)
    source = BatchSource(open_images(data, "train"), data, None, 0, 1 << 30)
    batch = source.__getitems__([(0, i) for i in range(len(source))])
    assert isinstance(batch, tuple)

    by_hand: list[float] = []
    staged: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def run_stage() -> None:
            name = f"{len(staged):064d}"
            staged.append(stage(model_spec, data, training, options.device, options.threads, Path(folder), name))

        def run_by_hand() -> None:
            by_hand.append(hand_written(model_spec, *batch, training, device))

        run_by_hand(), run_stage()  # warm both up
        by_hand.clear(), staged.clear()
        (Path(folder) / "store").rename(Path(folder) / "warm-up")
        for i in range(options.rounds):
            for run in (run_by_hand, run_stage) if i % 2 == 0 else (run_stage, run_by_hand):
                run()

    ratios = [s / h for s, h in zip(staged, by_hand, strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "training_overhead",
                "ratio": statistics.median(ratios),
                "wanted": 0.97,
                "ratios": ratios,
                "stage_images_per_s": staged,
                "hand_written_images_per_s": by_hand,
                "conditions": vars(options)
                | {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
