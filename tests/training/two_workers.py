"""A stage on two workers, each a process of its own, as a cluster would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.local import LocalStore
from orchestrator.planning.plan import TrainStage

SCRIPT = Path(__file__).with_name("run_stage.py")
ROOT = Path(__file__).parents[2]


def run_on_two_workers(stage: TrainStage, folder: Path) -> LocalStore:
    """Run the stage to its end; returns the store that it is in.

    Args:
        folder: for everything that the processes read and write.
    """
    file, store = folder / "stage.json", folder / "two"
    file.write_text(stage.model_dump_json())
    command = [sys.executable, SCRIPT, file, store, folder / "scratch2", "0"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", folder / "meet"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    return LocalStore(store)
