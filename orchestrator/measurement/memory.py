"""Peak memory of inference: the weights, plus what a forward pass needs beside them.

    peak = bytes of parameters and buffers + (peak during the pass − what was held just before it)

The input batch is there before the pass and is not counted. On GPU the second term is read from torch's allocator. On
CPU it is the growth of the resident set, in a fresh process that does nothing else (`memory_probe`): there weights and
imports are loaded, one image has gone through, and free heap pages are given back before the pass is watched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from orchestrator.measurement.compute import weight_bytes
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.timing import DoesNotFit

PROBE = "orchestrator.measurement.memory_probe"
OUT_OF_MEMORY_CODE = 12
"""Exit code of a probe whose memory ran out (ENOMEM)."""
UNREADABLE_CODE = 13
"""Exit code of a probe that cannot read its peak."""
Precision = Literal["fp32", "bf16", "fp16"]


class MemoryUnreadable(RuntimeError):
    """This platform does not tell the peak of a process's memory."""


@dataclass(frozen=True)
class Memory:
    """Peak memory in bytes."""

    weights: int
    activations: int

    @property
    def peak(self) -> int:
        """Both together."""
        return self.weights + self.activations


class ProbeJob(BaseModel):
    """What a probe measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    batch_size: int
    input_shape: tuple[int, int, int]
    """[channels, side, side]."""
    images: Path | None = None
    """File of images (`images` [B, channels, side, side]) for a network whose cost depends on them; `None` = one
    random batch."""
    precision: Precision = "fp32"
    threads: int = 1


def peak_on_gpu(network: torch.nn.Module, run: Callable[[Tensor], object], batches: Sequence[Tensor]) -> Memory:
    """Peak over these batches by torch's allocator; raises torch's error when memory runs out."""
    device = batches[0].device
    with torch.inference_mode():
        run(batches[0][:1])  # cuBLAS and cuDNN take their workspaces now
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for batch in batches:
            run(batch)
        torch.cuda.synchronize(device)
    return Memory(weight_bytes(network), torch.cuda.max_memory_allocated(device) - before)


class Probe:
    """A fresh process that measures the peak of one network; started at once, asked later."""

    def __init__(self, job: ProbeJob) -> None:
        self.batch_size = job.batch_size
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROBE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(job.model_dump_json())
        self.process.stdin.close()
        self.process.stdin = None  # so that `communicate` does not write again

    def result(self) -> Memory:
        """Wait for the process.

        Raises:
            DoesNotFit: if its memory ran out; also if the kernel killed it, which is how Linux says so.
            MemoryUnreadable: if the platform does not tell.
            RuntimeError: if it failed otherwise; quotes its last words.
        """
        out, err = self.process.communicate()
        code = self.process.returncode
        if code == 0:
            return Memory(**json.loads(out.splitlines()[-1]))
        if code in (OUT_OF_MEMORY_CODE, -signal.SIGKILL):
            raise DoesNotFit(self.batch_size)
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        if code == UNREADABLE_CODE:
            raise MemoryUnreadable(last)
        raise RuntimeError(f"the memory probe failed with exit code {code}: {last}")

    def stop(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
