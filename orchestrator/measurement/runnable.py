"""The networks as they are timed, and which of them this device can run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from orchestrator.compiler import without_compiler
from orchestrator.measurement import timing
from orchestrator.measurement.subject import Bench


def runnable(
    bench: Bench, batch_size: int, does_not_fit: Mapping[str, set[int]]
) -> tuple[dict[str, timing.Network], dict[str, str]]:
    """Networks that ran one batch, on the device, in their precision, compiled if wished; reasons of the others.

    Compiled ones are compiled anew each time: torch stops compiling a network that it has compiled for several shapes
    or settings, and runs it as it is, without saying so.

    Args:
        does_not_fit: network → batch sizes that memory is known not to hold.

    Returns:
        Network → what to call; network → why it cannot be called.
    """
    if bench.settings.compile:
        torch.compiler.reset()
    able: dict[str, timing.Network] = {}
    why: dict[str, str] = {}
    for who in bench.subjects:
        try:
            if batch_size in does_not_fit.get(who, ()):
                raise timing.DoesNotFit(batch_size)
            network: timing.Network = bench.ready(who)
            if bench.settings.compile:
                network = torch.compile(network, dynamic=None if bench.varied else False)
            with torch.inference_mode(), timing.out_of_memory_as_result(batch_size):
                network(bench.batches(batch_size)[0])
            able[who] = network
        except RuntimeError as error:  # a kernel that this format lacks, a compiler that is not there, …
            why[who] = without_compiler(error) or str(error).strip().splitlines()[0]
    return able, why
