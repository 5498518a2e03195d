"""A search on a cluster of its own; prints how it ended, or kills itself while its first trials train (`--die`)."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from cluster.local import LocalStore
from cluster.token import show_token
from orchestrator.execution import driver
from orchestrator.execution.events import Event, StageStopped
from orchestrator.search.control import SearchControl
from orchestrator.training.interface import Progress
from specs.load import load
from strategies import registry
from tests.execution import fake_search


def main(spec: Path, root: Path, die: bool) -> None:
    show_token(starting=True)
    document, store = load(spec, resolver=registry.resolver), LocalStore(root)
    store.prepare()
    control = SearchControl(document, store)
    stopped: list[str] = []

    def show(event: Event) -> None:
        if die and isinstance(event, Progress) and event.epoch >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(event, StageStopped):
            stopped.append(event.stage)

    summary = driver.run(
        control.plan,
        document.experiment,
        store=store,
        on_event=show,
        runners=fake_search.RUNNERS,
        num_cpus=2,
        steering=control,
    )
    print(
        json.dumps(
            {
                "finished": summary.finished,
                "failed": summary.failed,
                "stopped": stopped,
                "trials": [c.name for c in control.plan.combinations],
                "evidence": control.plan.stopped,
                "judged": control.plan.search.judged if control.plan.search else None,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), die="--die" in sys.argv)
