"""The process in which peak memory on CPU is measured: jobs as JSON on stdin, a line of JSON for each on stdout.

echo '{"student": {"kind": "inference", "recipe": {…}, "batch_size": 64, "input_shape": [3, 224, 224]}}' \\
    | python -m orchestrator.measurement.memory_probe

Loading torch takes seconds, so it is done once; each job then runs in a copy (`fork`) that has done nothing else. No
thread has started by then, which is what makes a copy safe.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import asdict
from multiprocessing.connection import Connection

import torch
from safetensors.torch import load_file

from orchestrator.measurement.growth import MemoryUnreadable, reset_peak
from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.memory import JOBS, Job, Memory, TrainingJob, inference_peak
from orchestrator.measurement.precision import DTYPES
from orchestrator.measurement.timing import batches_of, is_out_of_memory
from orchestrator.measurement.training_memory import FetchedStages, read_stage, training_peak


def measure(job: Job) -> Memory:
    """Measure in this process; memory may run out."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    if isinstance(job, TrainingJob):
        stage, parents = read_stage(json.dumps(job.stage)), FetchedStages(job.parents)
        return training_peak(stage, parents, torch.device("cpu"), job.batch_size, job.micro_steps)
    network = job.recipe.build().network.to(DTYPES[job.precision])
    images = load_file(job.images)["images"] if job.images else torch.rand(job.batch_size, *job.input_shape)
    batches = batches_of(images.to(DTYPES[job.precision]), job.batch_size, varied=job.images is not None)
    return inference_peak(network, batches)


def answer(job: Job, sender: Connection) -> None:
    """Measure, and send what came of it: the result, or why there is none."""
    found: dict[str, int | str]
    try:
        found = asdict(measure(job))
    except MemoryUnreadable as error:
        found = {"unreadable": str(error)}
    except Exception as error:  # whatever it is, the other process says it to the user
        words = str(error).strip() or type(error).__name__
        found = {"does_not_fit": words} if is_out_of_memory(error) else {"failed": words.splitlines()[0]}
    sender.send_bytes(json.dumps(found).encode())


def in_a_copy(job: Job) -> dict[str, int | str]:
    """Measure in a copy of this process; a copy that the kernel killed leaves the number of the signal."""
    copies = multiprocessing.get_context("fork")
    receiver, sender = copies.Pipe(duplex=False)
    process = copies.Process(target=answer, args=(job, sender))
    process.start()
    sender.close()
    found: dict[str, int | str] = {}
    try:
        found = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        found = {"signal": -(process.exitcode or 0)}
    process.join()
    return found


def main() -> None:
    """Read the jobs, print a line for each."""
    jobs = JOBS.validate_json(sys.stdin.read())
    try:
        reset_peak()
    except MemoryUnreadable as error:
        print(json.dumps({name: {"unreadable": str(error)} for name in jobs}))
        return
    for name, job in jobs.items():
        print(json.dumps({name: in_a_copy(job)}), flush=True)


if __name__ == "__main__":
    main()
