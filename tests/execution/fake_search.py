"""Stages of a search without networks: accuracy and cost follow from learning rate, tokens merged and seed.

The best learning rate is 1e-3; a token merged a block costs 0.1 points and saves 5 % of the MACs.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from cluster.local import LocalStore
from orchestrator.execution.lane import Runners
from orchestrator.planning.plan import MeasureStage, TrainStage
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext
from specs.metrics import row

RUNNERS = Runners("tests.execution.fake_search:train", "tests.execution.fake_search:measure")
SECONDS_AN_EPOCH = 1.0
"""So long that on a busy machine, too, a verdict reaches a stage before it has finished."""


def tokens(stage: TrainStage) -> int:
    """Tokens merged a block."""
    return sum(int(getattr(s, "r", 0)) for s in stage.strategies if s.name == "token_merging")


def top1(stage: TrainStage, epoch: int) -> float:
    """In %, after an epoch; seeds differ by 0.2 points."""
    distance = abs(math.log10(stage.training.optimizer.lr) + 3)
    return (90 - 15 * distance - 0.1 * tokens(stage) + 0.2 * stage.seed) * epoch / stage.training.epochs


def train(stage: TrainStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """One epoch after the other, its progress committed; a killed one goes on."""
    done = max((int(name.rsplit("/", 1)[1]) for name in io.store.names(f"progress/{stage.digest}")), default=0)
    _note(io.store, f"ran {stage.digest} from {done}")
    for epoch in range(done + 1, stage.training.epochs + 1):
        time.sleep(SECONDS_AN_EPOCH)
        _commit(io.store, io.scratch, f"progress/{stage.digest}/{epoch}", {"state.json": {"epoch": epoch}})
        io.report(Progress("epoch", stage.digest, epoch, epoch, values={"val_top1": top1(stage, epoch)}))
        if io.should_stop() and epoch < stage.training.epochs:
            raise StageInterrupted
    result = {
        "metrics": {"val_top1": top1(stage, stage.training.epochs)},
        "macs": 1e9 * (1 - 0.05 * tokens(stage)),
        "epochs": stage.training.epochs,
    }
    _commit(io.store, io.scratch, f"stages/{stage.digest}", {"result.json": result})
    return result


def measure(stage: MeasureStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """What the training stage left."""
    result = json.loads((io.store.fetch(f"stages/{stage.parents[0]}") / "result.json").read_text())
    rows = [row("top1", result["metrics"]["val_top1"]), row("macs", result["macs"])]
    dumped = [r.model_dump(mode="json") for r in rows]
    _commit(io.store, io.scratch, f"stages/{stage.digest}", {"rows.json": dumped, "result.json": {}})
    return {}


def _note(store: LocalStore, text: str) -> None:
    """A line in a file beside the store: who ran what."""
    with (store.root.parent / "ran.txt").open("a", encoding="utf-8") as file:
        file.write(f"{text} in {os.getpid()}\n")


def _commit(store: LocalStore, scratch: Path, name: str, files: dict[str, Any]) -> None:
    folder = Path(scratch) / name.replace("/", "_")
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    store.commit(name, folder)
