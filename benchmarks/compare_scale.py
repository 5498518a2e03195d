"""Seconds of `slimvit compare` over 1,000 combinations × 3 seeds with a record in MLflow (SQLite). Prints JSON.

    python benchmarks/compare_scale.py [--folder DIR] [--without-record]

The plan is made from a spec with a matrix, the artefacts (6,003) are committed to a real store with rows like those of
a real measurement, and the record is written by `slimvit compare` itself; all that is set-up and takes minutes, most of
them MLflow's. With `--folder` the set-up stays there and is used again.

Target: `seconds.warm` ≤ 5, the whole process, median of three. `seconds.cold` is the first call after the caches of
slimvit are removed; `seconds.json` makes neither report nor record. `seconds.warm_processor` is the processor time of
`seconds.warm`, which says more where other programs run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
SPEC = """
name: scale
data: {kind: sample}
student: {model: vit_tiny_patch16_224, args: {patch_size: 4, embed_dim: 48, depth: 4, num_heads: 3}}
teacher: {stage: teacher}
stages:
  - {name: teacher, training: {epochs: 2}}
  - {name: train, training: {epochs: 1}}
matrix:
  axes:
    merging:
      strategies:
        none: []
        r1: [{name: token_merging, r: 1}]
        r2: [{name: token_merging, r: 2}]
        r3: [{name: token_merging, r: 3}]
        r4: [{name: token_merging, r: 4}]
    distill: {strategies: {none: [], soft: [{name: response}]}}
    lr: {path: stages.train.training.optimizer.lr, values: [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4, 1e-3]}
    decay: {path: stages.train.training.optimizer.weight_decay, values: [0, .1, .2, .3, .4, .5, .6, .7, .8, .9]}
    seed: {seeds: [0, 1, 2]}
"""
CONDITIONS = {
    "device": "cpu: AMD EPYC 7B13",
    "precision": "fp32",
    "compile": False,
    "threads": 1,
    "attention": "fused (torch)",
    "float32_products": "highest",
    "malloc": "kept",
    "torch": "2.14.1",
    "timm": "1.0.31",
}
BASELINE = {"model": "vit_tiny_patch16_224", "args": {"img_size": 28, "patch_size": 4, "in_chans": 1}}


def set_up(folder: Path) -> dict[str, float]:
    """Spec, plan and committed artefacts."""
    from cluster.local import LocalStore
    from orchestrator.planning.make import make_plan
    from orchestrator.planning.plan import MeasureStage
    from orchestrator.run import commit_plan
    from specs.load import load
    from strategies.registry import resolver

    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.yaml").write_text(SPEC, encoding="utf-8")
    document = load(folder / "scale.yaml", resolver=resolver)
    plan = make_plan(document)
    store = LocalStore(folder / "slimvit-store")
    labels = {c.measured_by: c.labels for c in plan.combinations}
    seeds = {c.measured_by: c.seed for c in plan.combinations}
    for stage in plan.walk():
        if store.committed(f"stages/{stage.digest}"):
            continue
        scratch = folder / "scratch"
        scratch.mkdir()
        (scratch / "stage.json").write_text(stage.model_dump_json(indent=1))
        if isinstance(stage, MeasureStage):
            rows = [r.model_dump(mode="json") for r in measured(labels[stage.digest], seeds[stage.digest])]
            (scratch / "rows.json").write_text(json.dumps(rows))
            (scratch / "result.json").write_text(json.dumps({"seconds": 11.0}))
        else:
            values = {"loss": 0.4, "val_top1": 91.0, "val_top5": 99.5, "images_per_s": 900.0, "lr": 1e-3}
            line = {"kind": "epoch", "stage": stage.digest, "epoch": 1, "step": 32, "total_steps": 32, "values": values}
            (scratch / "history.jsonl").write_text(json.dumps(line) + "\n")
            result = {"metrics": {"val_top1": 91.0}, "seconds": 33.0, "images_per_s": 900.0, "epochs": 1, "steps": 32}
            (scratch / "result.json").write_text(json.dumps(result | {"environment": {"torch": "2.14.1"}}))
            (scratch / "model.json").write_text('{"format_version": 1}')
            (scratch / "model.safetensors").write_bytes(os.urandom(1 << 12))
        store.commit(f"stages/{stage.digest}", scratch)
    commit_plan(plan, document.experiment, store)
    return {
        "combinations": len({c.name for c in plan.combinations}),
        "seeds": len(set(seeds.values())),
        "artefacts": len(plan.stages),
        "set_up_seconds": round(time.perf_counter() - started, 1),
    }


def measured(labels: dict[str, str], seed: int) -> list[Any]:
    """Rows as a measurement leaves them: all metrics, samples where it has samples."""
    from specs.metrics import METRICS, row

    rng = random.Random(f"{labels}{seed}")
    r = int(labels["merging"].removeprefix("r").replace("none", "0"))
    cost = 1 - 0.09 * r
    top1 = 90 - 0.4 * r + 1.5 * (labels["distill"] == "soft") + 2000 * float(labels["lr"]) + rng.gauss(0, 0.3)
    rows = []
    for name, metric in METRICS.items():
        sizes = (1, 64) if name.startswith("throughput") else (None,)
        for size in sizes:
            conditions: dict[str, Any] = CONDITIONS | ({"baseline": BASELINE} if name.endswith("_ratio") else {})
            conditions |= {"batch_size": size} if size else {"images": 256}
            if name == "energy_j" or name == "energy_ratio":
                rows.append(row(name, None, conditions=conditions, reason="this device has no meter of energy"))
                continue
            scale = {"%": 1.0, "": 0.5}.get(metric.unit, 1e3)
            value = top1 if name == "top1" else scale * (cost if metric.direction == "lower" else 1 / cost)
            noisy = name.startswith(("throughput", "latency", "energy", "train"))
            samples = [value * rng.gauss(1, 0.02) for _ in range(40)] if noisy else []
            value *= rng.gauss(1, 0.01) if noisy else 1
            summary = {"mean": value, "std": 0.1, "p5": value, "p50": value, "p95": value, "count": 40.0}
            rows.append(row(name, value, samples=samples, summary=summary if noisy else {}, conditions=conditions))
    return rows


def command(folder: Path, *arguments: str) -> tuple[float, float]:
    """Wall time and processor time of a whole `slimvit compare` process."""
    line = [sys.executable, "-c", "from orchestrator.cli import main; main()", "compare", "scale", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started, before = time.perf_counter(), os.times()
    subprocess.run(line, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--without-record", action="store_true", help="leave out what needs MLflow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        result: dict[str, Any] = set_up(folder)
        seconds: dict[str, Any] = {}
        if not options.without_record:
            seconds["first_with_record"] = round(command(folder)[0], 1)
        shutil.rmtree(folder / "slimvit-store" / "cache", ignore_errors=True)
        seconds["cold_json"] = round(command(folder, "--format", "json")[0], 2)
        seconds["json"] = round(statistics.median(command(folder, "--format", "json")[0] for _ in range(REPEATS)), 2)
        if not options.without_record:
            shutil.rmtree(folder / "slimvit-store" / "cache", ignore_errors=True)
            seconds["cold"] = round(command(folder, "--format", "table")[0], 2)
            times = [command(folder, "--format", "table") for _ in range(REPEATS)]
            seconds["warm"], seconds["warm_processor"] = (
                round(statistics.median(t), 2) for t in zip(*times, strict=True)
            )
        result["seconds"] = seconds
        print(json.dumps({"benchmark": "compare_scale", **result}, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
