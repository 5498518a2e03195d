"""The experiment that is disturbed: a teacher, two students in three stages each, and the command that runs it.

It runs in a folder of its own with everything that a run keeps (store, journal, cache, temporary files) below it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.s3_process import CREDENTIALS

ROOT = Path(__file__).resolve().parents[2]
CLOCK_FOLDER = Path(__file__).with_name("clock")
CHECKPOINT_EVERY = 20
"""Optimiser steps between two checkpoints."""
SPEC = f"""
name: chaos
data: {{kind: sample, limit_train: 1600, limit_val: 60}}
student: {{model: vit_tiny_patch16_224, args: {{patch_size: 7, embed_dim: 48, depth: 2, num_heads: 3}}}}
stages:
  - name: teacher
    model: {{model: vit_tiny_patch16_224, args: {{patch_size: 7, embed_dim: 48, depth: 3, num_heads: 3}}}}
    training: &schedule {{epochs: 2, batch_size: 16, checkpoint_every_steps: {CHECKPOINT_EVERY}}}
  - {{name: student, teacher: {{stage: teacher}}, training: *schedule}}
  - {{name: polish, init: {{stage: student}}, training: *schedule}}
  - {{name: settle, init: {{stage: polish}}, training: *schedule}}
matrix:
  axes:
    distill:
      stage: student
      strategies:
        cold: [{{name: response, kind: soft, temperature: 1.0}}]
        hot: [{{name: response, kind: soft, temperature: 4.0}}]
measurement:
  {{batch_sizes: [1], seconds: 0.05, images: 4, baseline: null, operating_points: {{}}, attempts: 1, max_drift: 1000}}
resources: {{lanes: 2}}
"""
COMBINATIONS, STAGES = 2, 9
"""A teacher that both share, three stages of training each, and their measurements."""
_SAID = re.compile(
    r"^\[ *[\d.]+ s\] (?P<label>\S+): (?:(?P<begun>started)(?: again \(attempt \d+\))? on lane (?P<lane>\d+)"
    r"|goes on from step (?P<step>\d+)|(?P<done>finished) in .*)$"
)


@dataclass(frozen=True)
class Said:
    """A line of the log that tells something of a stage."""

    label: str
    kind: str
    """`begun`, `resumed` or `done`."""
    step: int = 0
    """From which it went on."""
    at: float = 0.0
    """When it was read, in seconds since the epoch."""


@dataclass
class Command:
    """One `slimvit run` of the grid, as a process."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    """What it printed, with the time."""

    def read(self) -> None:
        """Take its output until it ends; runs in a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))

    @property
    def progress(self) -> int:
        """How many lines of its log there are: how far it is, whatever the machine's speed."""
        return sum(line.startswith("[") for _, line in self.lines)

    def said(self) -> list[Said]:
        """What it told of stages, in order."""
        found = []
        for at, line in list(self.lines):
            if match := _SAID.match(line):
                kind = "begun" if match["begun"] else "done" if match["done"] else "resumed"
                found.append(Said(match["label"], kind, int(match["step"] or 0), at))
        return found

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@dataclass
class Grid:
    """A place where the experiment is run, as often as it takes.

    Args:
        folder: of its own; its path must be short, because sockets lie below it.
        tracking: MLflow's address.
        store: address of the artefact store; empty = a folder here.
        endpoint: of a store in a bucket.
        cluster: address of a running Ray cluster; empty = each run starts its own.
    """

    folder: Path
    tracking: str
    store: str = ""
    endpoint: str = ""
    cluster: str = ""
    commands: list[Command] = field(default_factory=list)
    """Every run so far."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "t").mkdir()
        (self.folder / "grid.yaml").write_text(SPEC, encoding="utf-8")
        self.store = self.store or str(self.folder / "store")

    @property
    def experiment(self) -> str:
        """Name of its record at the tracking server."""
        return self.folder.name

    @property
    def progress(self) -> int:
        """How many lines all runs have printed."""
        return sum(command.progress for command in self.commands)

    @property
    def clock_file(self) -> Path:
        """Seconds by which the clocks of the run's Python processes are wrong; none while it is missing."""
        return self.folder / "clock"

    def start(self) -> Command:
        """The command, once more the same."""
        settings = {
            "storage.root": self.store,
            "tracking.uri": self.tracking,
            "tracking.experiment": self.experiment,
        } | ({"storage.endpoint": self.endpoint} if self.endpoint else {})
        arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        if self.cluster:
            arguments += ["--address", self.cluster]
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "run", "grid.yaml", "--plain", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        command = Command(process)
        self.commands.append(command)
        threading.Thread(target=command.read, daemon=True).start()
        return command

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **CREDENTIALS,
            "PYTHONPATH": os.pathsep.join((str(CLOCK_FOLDER), str(ROOT))),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            "TMPDIR": str(self.folder / "t"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "SLIMVIT_CACHE": str(self.folder / "cache"),
            "SLIMVIT_CHAOS_CLOCK": str(self.clock_file),
        }
