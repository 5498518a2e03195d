"""Whoever disturbs loses no process of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORPHAN = """
import psutil, subprocess, time
from tests.chaos.processes import reaper, strays, kill, wait_gone
with reaper():
    spared = subprocess.Popen(["sleep", "60"])
    known = lambda: {spared.pid}
    subprocess.run("sleep 61 & sleep 62 & sleep 2", shell=True, start_new_session=True)
    found = strays(known)
    print(sorted(p.cmdline()[1] for p in found.values()))
    time.sleep(2)  # the reaper has seen them
    kill(*found.values())
    print(wait_gone(known, 30), spared.poll())
    time.sleep(2)
    print([psutil.pid_exists(pid) for pid in found])
    spared.kill()
    print(spared.wait())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_orphans_are_found_and_what_is_known_is_spared() -> None:
    assert run(ORPHAN).stdout.splitlines() == ["['61', '62']", "{} None", "[False, False]", "-9"]
