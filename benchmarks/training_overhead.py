"""How fast `slimvit run` trains a stage, against a training loop written by hand: same network, images, batch, threads.

Rounds alternate in order: the hand-written loop, then a whole `slimvit run` of a spec with one training stage and one
worker (or the other way round), so that a machine that warms up or slows down does the same to both. Each trains in a
process of its own that has computed nothing before. The hand-written loop is the least that trains: images decoded and
normalised beforehand, a `DataLoader`, forward, cross-entropy, backward, AdamW. The stage adds data order and randomness
by seed, the schedule, the finiteness check, progress reports, the vote on stopping, and the driver that watches it.
Both are timed over their training steps alone: loading, evaluation, start-up and the final artefact are outside.

    python benchmarks/training_overhead.py --rounds 5

Prints JSON: images/s of both in every round, and the ratio stage / hand-written (median over the rounds).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training.data import BatchSource
from orchestrator.training.sources import open_images
from specs.data import Sample

SPEC = """\
name: training-overhead
data: {{kind: sample, limit_train: {images}, limit_val: 10}}
student: {{model: {model}, args: {{img_size: 28, patch_size: 4, in_chans: 1}}}}
stages: [{{name: train, training: {{epochs: 1, batch_size: {batch_size}}}}}]
seed: {seed}
resources: {{workers: 1, cpus_per_worker: {threads}, gpus_per_worker: {gpus}}}
measurement: {{baseline: null, seconds: 0.05, images: 10, batch_sizes: [1], operating_points: {{}}, attempts: 1}}
storage: {{root: store}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""


def hand_written(options: argparse.Namespace) -> float:
    """Images a second of one epoch of the minimal loop."""
    torch.set_num_threads(options.threads)
    data = Sample(kind="sample", limit_train=options.images, limit_val=10)
    source = BatchSource(open_images(data, "train"), data, None, 0, 1 << 30)
    batch = source.__getitems__([(0, i) for i in range(len(source))])
    assert isinstance(batch, tuple), "the packaged sample is readable"
    device = torch.device(options.device)
    model = timm.create_model(options.model, img_size=28, patch_size=4, in_chans=1, num_classes=10).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*batch), batch_size=options.batch_size, shuffle=True, drop_last=True)
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
    return steps * options.batch_size / (time.perf_counter() - start)


def apart(function: Callable[[argparse.Namespace], float], options: argparse.Namespace) -> float:
    """What the function returns, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (options,))


def run(options: argparse.Namespace, folder: Path, seed: int) -> float:
    """Images a second of the training stage of a `slimvit run`, as the stage's own result has them."""
    values = vars(options) | {"seed": seed, "gpus": 1 if options.device == "cuda" else 0}
    (folder / "spec.yaml").write_text(SPEC.format(**values), encoding="utf-8")
    store = folder / "store" / "stages"
    before = set(store.glob("*/history.jsonl"))
    command = [sys.executable, "-m", "orchestrator.cli", "run", "spec.yaml", "--plain"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"slimvit run ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    (trained,) = set(store.glob("*/history.jsonl")) - before
    return float(json.loads(trained.with_name("result.json").read_text(encoding="utf-8"))["images_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=960, help="training images of one epoch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    by_hand: list[float] = []
    staged: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            if i % 2:
                staged.append(run(options, Path(folder), i))
            by_hand.append(apart(hand_written, options))
            if not i % 2:
                staged.append(run(options, Path(folder), i))
            print(f"round {i + 1}: {staged[-1]:.1f} of {by_hand[-1]:.1f} images/s", file=sys.stderr, flush=True)

    ratios = [s / h for s, h in zip(staged, by_hand, strict=True)]
    report = {
        "benchmark": "training_overhead",
        "ratio": statistics.median(ratios),
        "wanted": 0.97,
        "ratios": ratios,
        "stage_images_per_s": staged,
        "hand_written_images_per_s": by_hand,
        "conditions": vars(options)
        | {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
