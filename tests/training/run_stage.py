"""Runs one stage in a process of its own: ``run_stage.py STAGE.json STORE SCRATCH KILL_AT RANK WORLD RENDEZVOUS``.

With KILL_AT above 0 the process kills itself (SIGKILL) after that many steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from cluster.local import LocalStore
from orchestrator.planning.plan import StoreStage, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.stage import run_train_stage
from orchestrator.training.store_stage import run_store_stage
from specs.strategy import RESOLVER_KEY
from strategies import registry


def main() -> None:
    stage_file, store, scratch, kill_at, rank, world_size, rendezvous = sys.argv[1:]
    steps_left = int(kill_at)

    def die_in_time() -> bool:
        nonlocal steps_left
        steps_left -= 1
        if steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    text = Path(stage_file).read_text(encoding="utf-8")
    context = WorkerContext(rank=int(rank), world_size=int(world_size))
    if context.world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=context.rank, world_size=context.world_size
        )
    io = StageIO(LocalStore(Path(store)), Path(scratch) / rank, should_stop=die_in_time)
    if json.loads(text)["kind"] == "store":
        run_store_stage(StoreStage.model_validate_json(text), context, io)
    else:
        run_train_stage(TrainStage.model_validate_json(text, context={RESOLVER_KEY: registry.resolver}), context, io)
    if context.world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
