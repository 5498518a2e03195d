"""The fresh process in which peak memory on CPU is measured: a job as JSON on stdin, the result as JSON on stdout.

echo '{"recipe": {…}, "batch_size": 64, "input_shape": [3, 224, 224]}' | python -m orchestrator.measurement.memory_probe
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from orchestrator.measurement.compute import weight_bytes
from orchestrator.measurement.malloc import keep_freed_memory, release_freed_memory
from orchestrator.measurement.memory import (
    OUT_OF_MEMORY_CODE,
    UNREADABLE_CODE,
    Memory,
    MemoryUnreadable,
    ProbeJob,
)
from orchestrator.measurement.precision import DTYPES
from orchestrator.measurement.timing import batches_of, is_out_of_memory

KIB = 1024


def probe(job: ProbeJob) -> Memory:
    """Measure in this process; memory may run out."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    network = job.recipe.build().network.to(DTYPES[job.precision])
    varied = job.images is not None
    images = load_file(job.images)["images"] if job.images else torch.rand(job.batch_size, *job.input_shape)
    batches = batches_of(images.to(DTYPES[job.precision]), job.batch_size, varied=varied)
    with torch.inference_mode():
        network(batches[0][:1])  # thread pools and kernels are set up now
        release_freed_memory()
        reset_peak()
        before = status("VmRSS")
        for batch in batches:
            network(batch)
        return Memory(weight_bytes(network), max(status("VmHWM") - before, 0))


def status(field: str) -> int:
    """A field of this process's memory in bytes: `VmRSS` (resident set) or `VmHWM` (its peak).

    Raises:
        MemoryUnreadable: where there is no such file, or no such line.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise MemoryUnreadable(f"this platform has no /proc/self/status: {error}") from error
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KIB
    raise MemoryUnreadable(f"/proc/self/status has no {field} here")


def reset_peak() -> None:
    """Let the peak of the resident set start anew from its present size."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise MemoryUnreadable(f"the peak of the resident set cannot be reset here: {error}") from error


def main() -> None:
    """Read the job, print the result."""
    job = ProbeJob.model_validate_json(sys.stdin.read())
    try:
        memory = probe(job)
    except MemoryUnreadable as error:
        print(error, file=sys.stderr)
        sys.exit(UNREADABLE_CODE)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(OUT_OF_MEMORY_CODE)
    print(json.dumps({"weights": memory.weights, "activations": memory.activations}))


if __name__ == "__main__":
    main()
