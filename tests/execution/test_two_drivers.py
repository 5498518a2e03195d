"""Two runs of one plan on one store, on a disk and in a bucket: every stage is computed once, and both end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cache import FOLDER_VARIABLE
from cluster.s3_client import client
from orchestrator.storage import open_store
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS, s3_server
from tests.execution.plans import digest

pytestmark = [pytest.mark.ray, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
LABELS = [f"steps={steps}" for steps in (21, 22, 23, 24)]


def two_runs(location: str, address: str) -> None:
    command = [sys.executable, "-m", "tests.execution.rival", location, address, *LABELS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [json.loads(process.communicate(timeout=240)[0].splitlines()[-1]) for process in running]
    store = open_store(location)
    stages = {digest(label) for label in LABELS}
    computed = [stage for run in said for stage in run["finished"]]
    assert sorted(computed) == sorted(stages), "each once, by one of the two"
    for run in said:
        assert set(run["finished"]) | set(run["found"]) <= stages
        assert set(run["found"]).isdisjoint(run["finished"])
    assert store.register().names() == [], "no lease is left"
    assert store.inventory().leftovers == (), "nor anything else"


def test_on_a_disk(cluster: dict[str, str], tmp_path: Path) -> None:
    two_runs(str(tmp_path / "store"), cluster["address"])


def test_in_a_bucket(cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (CREDENTIALS | {FOLDER_VARIABLE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        address = Address("two-drivers", "store", endpoint)
        client(address).create_bucket(Bucket=address.bucket)
        two_runs(str(address), cluster["address"])
