"""Peak memory of inference and of training, and the fresh processes in which it is taken on CPU.

    inference = bytes of parameters and buffers + growth during the pass
    training  = bytes of parameters and buffers (teacher and averaged weights too) + optimiser state
                + growth during a step (gradients, activations)

The input batch is there before and is not counted. On a GPU growth is read from torch's allocator, here. On CPU it is
that of the resident set, in a process that does nothing else (`memory_probe`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter
from torch import Tensor

from orchestrator.measurement.compute import weight_bytes
from orchestrator.measurement.growth import MemoryUnreadable, growth
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.timing import DoesNotFit

PROBE = "orchestrator.measurement.memory_probe"
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Memory:
    """Peak memory in bytes, by what it is for."""

    weights: int
    activations: int
    gradients: int = 0
    optimizer: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Those that are there, by name."""
        return {name: size for name, size in asdict(self).items() if size}

    @property
    def peak(self) -> int:
        """All together."""
        return sum(self.parts.values())


class InferenceJob(BaseModel):
    """A process measures a forward pass of a network as it is deployed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["inference"] = "inference"
    recipe: Recipe
    batch_size: int
    input_shape: tuple[int, int, int]
    """[channels, side, side]."""
    images: Path | None = None
    """File of images (`images` [B, channels, side, side]) for a network whose cost depends on them; `None` = one
    random batch."""
    precision: Precision = "fp32"
    threads: int = 1


class TrainingJob(BaseModel):
    """A process measures steps of a training stage, on one of its workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["training"] = "training"
    stage: dict[str, JsonValue]
    """The training stage, as in its artefact's `stage.json`."""
    parents: dict[str, Path]
    """Name in the store (`stages/<digest>`) → local folder, for each stage that this one reads."""
    batch_size: int
    """Images a forward pass."""
    micro_steps: int
    """Forward and backward passes before an update."""
    threads: int = 1


Job = InferenceJob | TrainingJob
JOBS: TypeAdapter[dict[str, Job]] = TypeAdapter(dict[str, Annotated[Job, Field(discriminator="kind")]])


def inference_peak(network: torch.nn.Module, batches: Sequence[Tensor]) -> Memory:
    """Peak over these batches, on their device; raises torch's error when memory runs out.

    Raises:
        MemoryUnreadable: where a CPU process cannot read its peak.
    """

    def passes() -> None:
        for batch in batches:
            network(batch)

    with torch.inference_mode():
        network(batches[0][:1])  # thread pools, kernels and workspaces are set up now
        return Memory(weight_bytes(network), growth(batches[0].device, passes))


class Probe:
    """A process that measures jobs one after the other, each in a fresh copy of itself; started at once, asked later.

    What takes long, loading torch, is done once.
    """

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self.jobs = dict(jobs)
        self.answers: dict[str, dict[str, int | str]] | None = None
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CUDA_VISIBLE_DEVICES": "",
            "OPENBLAS_NUM_THREADS": "1",  # NumPy's threads would start with the import, and do not survive a copy
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROBE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # so that its copies can be stopped with it
        )
        assert self.process.stdin is not None
        self.process.stdin.write(JOBS.dump_json(self.jobs).decode())
        self.process.stdin.close()
        self.process.stdin = None  # so that `communicate` does not write again

    def result(self, name: str) -> Memory:
        """Wait for the process, and give the result of one job.

        Raises:
            DoesNotFit: if its memory ran out; also if the kernel killed it, which is how Linux says so.
            MemoryUnreadable: if the platform does not tell.
            RuntimeError: if it failed otherwise; quotes its last words.
        """
        if self.answers is None:
            out, self.last_words = self.process.communicate()
            self.answers = {}
            for line in out.splitlines():
                self.answers |= json.loads(line)
        answer = self.answers.get(name, {"signal": -self.process.returncode})
        if "weights" in answer:
            return Memory(**answer)  # type: ignore[arg-type]  # numbers all, as `memory_probe` wrote them
        if "does_not_fit" in answer or answer.get("signal") == signal.SIGKILL:
            raise DoesNotFit(self.jobs[name].batch_size)
        if "unreadable" in answer:
            raise MemoryUnreadable(answer["unreadable"])
        said = answer.get("failed") or (self.last_words.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the memory probe failed: {said}")

    def stop(self) -> None:
        """End the process and its copy if they still run."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
