"""A cluster in a process of its own: prints its addresses as JSON, ends when its input closes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def head(cpus: int, environment: Mapping[str, str] = os.environ) -> Iterator[dict[str, str]]:
    """Its `address` and its `dashboard`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.execution.head", str(cpus)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(60)


if __name__ == "__main__":
    from cluster.connect import connect

    with connect(num_cpus=int(sys.argv[1])) as cluster:
        print(json.dumps({"address": cluster.address, "dashboard": cluster.dashboard_url}), flush=True)
        sys.stdin.read()
