"""Whoever disturbs loses no process of a run, and is not disturbed by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORPHAN = """
import subprocess, sys
from tests.chaos.processes import reaper, strays, kill, wait_gone
with reaper():
    spared = subprocess.Popen(["sleep", "60"])
    known = lambda: {spared.pid}
    subprocess.run("sleep 61 & sleep 62 & true", shell=True, start_new_session=True)
    found = strays(known)
    print(sorted(p.cmdline()[1] for p in found.values()))
    kill(*found.values())
    print(wait_gone(known, 30), spared.poll())
    spared.kill()
"""
SIGNALS = """
import os, subprocess, time
from tests.chaos.processes import reaper
try:
    with reaper():
        subprocess.run(f"kill -INT {os.getpid()}; sleep 1", shell=True)
        subprocess.run(f"(sleep 0.5; kill -INT {os.getpid()}) & true", shell=True, start_new_session=True)
        time.sleep(2)
        print("not disturbed", flush=True)
        os.kill(os.getpid(), 2)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_orphans_are_found_and_what_is_known_is_spared() -> None:
    assert run(ORPHAN).stdout.splitlines() == ["['61', '62']", "{} None"]


def test_a_signal_from_below_does_not_interrupt_but_any_other_does() -> None:
    done = run(SIGNALS)
    assert done.stdout.splitlines() == ["not disturbed", "interrupted"]
    assert done.stderr.count("SIGINT from below: process") == 2
