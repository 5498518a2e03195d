"""Seconds and peak memory to plan 10,000 combinations, and how fast the command answers. Prints JSON.

    python benchmarks/planning.py [COMBINATIONS]

Targets: 10,000 combinations in under 5 s; `slimvit --help` in at most 0.5 s; `slimvit plan` of the quickstart in at
most 1.5 s (whole processes, median of five).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
ROOT = Path(__file__).resolve().parents[1]
SPEC = """
name: grid
data: {{kind: sample}}
student: {{model: vit_tiny_patch16_224, args: {{patch_size: 4, embed_dim: 48, depth: 4, num_heads: 3}}}}
teacher: {{stage: teacher}}
stages:
  - name: teacher
    model: {{model: vit_small_patch16_224, args: {{patch_size: 4}}}}
  - name: train
  - {{name: tune, init: {{stage: train}}}}
matrix:
  axes:
    merging:
      stage: tune
      strategies:
        none: []
        r1: [{{name: token_merging, r: 1}}]
        r2: [{{name: token_merging, r: 2}}]
        r3: [{{name: token_merging, r: 3}}]
        r4: [{{name: token_merging, r: 4}}]
    distill: {{stage: train, strategies: {{none: [], soft: [{{name: response}}]}}}}
    lr: {{path: stages.train.training.optimizer.lr, values: [0.001, 0.002, 0.003, 0.004, 0.005]}}
    decay: {{path: stages.tune.training.optimizer.weight_decay, values: [0.01, 0.02, 0.03, 0.04, 0.05]}}
    seed: {{seeds: {seeds}}}
storage: {{root: {store}}}
"""
CELLS_A_SEED = 5 * 2 * 5 * 5


def plan_grid(num_combinations: int, folder: Path) -> dict[str, float]:
    """Plan a grid in this process; load, validation, digests and all."""
    from orchestrator.planning.make import make_plan
    from specs.load import load
    from strategies.registry import resolver

    spec = folder / "grid.yaml"
    seeds = list(range(max(1, num_combinations // CELLS_A_SEED)))
    spec.write_text(SPEC.format(seeds=seeds, store=folder / "store"), encoding="utf-8")
    start = time.perf_counter()
    document = load(spec, resolver=resolver)
    loaded = time.perf_counter()
    plan = make_plan(document)
    planned = time.perf_counter()
    assert not {"torch", "ray", "mlflow", "timm"} & set(sys.modules)
    return {
        "combinations": len(plan.combinations),
        "stages": len(plan.stages),
        "stages_alone": plan.stages_alone(),
        "load_seconds": round(loaded - start, 3),
        "plan_seconds": round(planned - loaded, 3),
        "total_seconds": round(planned - start, 3),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def command_seconds(*arguments: str) -> float:
    """Median wall time of a whole process."""
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments]
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combinations", type=int, nargs="?", default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, object] = dict(plan_grid(arguments.combinations, Path(folder)))
    result["help_seconds"] = command_seconds("--help")
    quickstart = ROOT / "specs" / "library" / "quickstart.yaml"
    result["plan_quickstart_seconds"] = command_seconds("plan", str(quickstart))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
