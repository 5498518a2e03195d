"""A process that leaves its cluster while lanes are still on their way; says so at its end, if it gets there."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from unittest import mock

import ray

from orchestrator.execution import lanes

LANES = 8


@ray.remote(num_cpus=0)
class Group:
    """One that never gets ready."""

    def run(self) -> None:
        time.sleep(600)


def drive(spec: Any) -> None:
    """As Ray Train waits for its controller: nobody else holds the handle and the reference."""
    group = Group.remote()
    ray.get(group.run.remote())


def main() -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with mock.patch.object(lanes, "drive", drive):
        started = lanes.Lanes(mock.Mock(), mock.Mock(), mock.Mock())
        for _ in range(LANES):
            threading.Thread(target=started._drive, args=(mock.Mock(),), daemon=True).start()
        time.sleep(4)
        ray.shutdown()
        time.sleep(1)
    print("went on")


if __name__ == "__main__":
    main()
