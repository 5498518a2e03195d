"""A run on a cluster that another one shares its store with: prints what became of each stage, as JSON."""

from __future__ import annotations

import json
import sys

from orchestrator.execution import driver
from orchestrator.execution.events import Event, StageElsewhere
from orchestrator.storage import open_store
from tests.execution import plans


def main(location: str, address: str, *labels: str) -> None:
    waited: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StageElsewhere):
            waited.append(event.stage)

    summary = driver.run(
        plans.plan(*(plans.train(label) for label in labels)),
        plans.experiment(lanes=1),
        store=open_store(location),
        address=address,
        on_event=on_event,
        runners=plans.RUNNERS,
    )
    print(json.dumps({"finished": summary.finished, "found": summary.found, "waited": waited}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
