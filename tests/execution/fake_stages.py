"""Stages without networks: they commit a small artefact and do as the experiment's description of them says.

The label of a stage is its programme, words like `sleep=0.5 fail=ValueError`; workers import this module by name.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.planning.plan import MeasureStage, TrainStage
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext


def train(stage: TrainStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """Counts `steps`, one each 50 ms, committing progress after each; a killed one goes on from there."""
    words = dict(word.split("=") for word in stage.label.split())
    began = time.time()
    for parent in stage.parents:
        io.store.fetch(f"stages/{parent}")
    resumed = max((int(n.split("/")[-1]) for n in io.store.names(f"progress/{stage.digest}")), default=0)
    if resumed:
        io.report(Progress("resumed", stage.digest, step=resumed))
    for step in range(resumed + 1, int(words.get("steps", 1)) + 1):
        if _vote(io.should_stop(), context) and "deaf" not in words:
            raise StageInterrupted
        if step == int(words.get("hang", 0)):
            ctypes.PyDLL(None).sleep(3600)  # in native code, with the interpreter's lock
        time.sleep(float(words.get("pause", 0.05)))
        io.report(Progress("step", stage.digest, step=step, values={"pid": float(os.getpid())}))
        if step == int(words.get("kill", 0)) and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == int(words.get("always_kill", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if context.rank == 0:
            _commit(io, f"progress/{stage.digest}/{step}", {"step": step})
    if (rank := words.get("fail_rank")) is None or int(rank) == context.rank:
        if words.get("fail") == "DataError":
            raise DataError(f"no images for {stage.label}")
        if words.get("fail") == "ValueError":
            raise ValueError("an option does not fit")
        if words.get("fail") == "RuntimeError":
            raise RuntimeError("nobody foresaw this")
    elif context.world_size > 1:
        time.sleep(600)  # as in a collective that the failed worker never joins
    result = {
        "pid": os.getpid(),
        "world_size": context.world_size,
        "resumed": resumed,
        "began": began,
        "ended": time.time(),
        "threads": context.threads,
    }
    if context.rank == 0:
        _commit(io, f"stages/{stage.digest}", result, file="result.json")
    return result


def measure(stage: MeasureStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """Takes 0.3 s and says when."""
    assert context.world_size == 1
    began = time.time()
    time.sleep(0.3)
    result = {"began": began, "ended": time.time()}
    _commit(io, f"stages/{stage.digest}", result, file="result.json")
    return result


def _vote(stop: bool, context: WorkerContext) -> bool:
    """Whether any worker of the group wants to stop; all of them hear the same."""
    if context.world_size == 1:
        return stop
    import torch

    votes = torch.tensor([1.0, float(stop)])
    torch.distributed.all_reduce(votes)
    assert int(votes[0]) == context.world_size
    return bool(votes[1])


def _commit(io: StageIO, name: str, content: dict[str, Any], file: str = "state.json") -> None:
    folder = Path(io.scratch) / name.replace("/", "_")
    folder.mkdir()
    (folder / file).write_text(json.dumps(content))
    io.store.commit(name, folder)
