"""A run on a cluster of its own that a signal can stop: prints `stepping` when at work, and how it ended."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.local import LocalStore
from orchestrator.execution import driver
from orchestrator.execution.events import Event
from orchestrator.execution.interrupt import StopOnSignal
from orchestrator.training.interface import Progress
from tests.execution import plans


def main(root: str, label: str) -> None:
    def show(event: Event) -> None:
        if isinstance(event, Progress) and event.step >= 3:
            print("stepping", flush=True)

    with StopOnSignal() as stop:
        summary = driver.run(
            plans.plan(plans.train(label)),
            plans.experiment(),
            store=LocalStore(Path(root)),
            on_event=show,
            should_stop=stop,
            runners=plans.RUNNERS,
            num_cpus=1,
        )
    print(f"interrupted={summary.interrupted} finished={len(summary.finished)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
