"""Rows of peak memory, at the largest stated batch size that fits."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import save_file

from orchestrator.measurement import compute, memory, timing
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.subject import Bench

MEMORIES = ("peak_memory_mib", "peak_memory_ratio")
"""Metrics that are taken here."""


class PeakMemory:
    """Peak memory of the networks on the bench.

    On CPU a fresh process for each network starts at once, at the largest batch size, and is asked later: meanwhile
    there is other work.
    """

    def __init__(self, bench: Bench, cleanup: ExitStack) -> None:
        self.bench, self.cleanup = bench, cleanup
        self.wanted = bool(bench.rows.wanted.intersection(MEMORIES))
        self.images_file: Path | None = None
        self.probes: dict[str, memory.Probe] = {}
        if bench.settings.device.type != "cpu" or not self.wanted:
            return
        if bench.varied:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            self.images_file = folder / "images.safetensors"
            save_file({"images": bench.images}, self.images_file)
        largest = max(bench.settings.batch_sizes)
        self.probes = {who: self._probe(who, largest) for who in bench.subjects}

    def take(self) -> dict[str, set[int]]:
        """Add the rows. Returns network → batch sizes that did not fit."""
        bench = self.bench
        does_not_fit: dict[str, set[int]] = {who: set() for who in bench.subjects}
        if not self.wanted:
            return does_not_fit
        for batch_size in sorted(set(bench.settings.batch_sizes), reverse=True):
            found: dict[str, memory.Memory] = {}
            why: dict[str, str] = {}
            for who in bench.subjects:
                try:
                    found[who] = self._peak(who, batch_size)
                except timing.DoesNotFit as error:
                    does_not_fit[who].add(batch_size)
                    why[who] = str(error)
                except (memory.MemoryUnreadable, RuntimeError) as error:
                    why[who] = str(error)
            self._add(batch_size, found, why)
            if STUDENT in found or batch_size not in does_not_fit[STUDENT]:
                break
        return does_not_fit

    def _add(self, batch_size: int, found: dict[str, memory.Memory], why: dict[str, str]) -> None:
        rows = self.bench.rows
        # Probed as it is, in every process: nothing is compiled.
        conditions = self.bench.conditions | {"batch_size": batch_size, "compile": False}
        values = {who: m.peak / compute.MIB for who, m in found.items()}
        if STUDENT in found:
            parts = {
                "weights": found[STUDENT].weights / compute.MIB,
                "activations": found[STUDENT].activations / compute.MIB,
            }
            rows.add("peak_memory_mib", values[STUDENT], conditions, parts=parts)
        else:
            rows.add("peak_memory_mib", None, conditions, reason=why[STUDENT])
        rows.add_ratio("peak_memory_ratio", values, conditions, why)

    def _peak(self, who: str, batch_size: int) -> memory.Memory:
        if self.bench.settings.device.type == "cuda":
            network = self.bench.ready(who)
            with timing.out_of_memory_as_result(batch_size):
                return memory.peak_on_gpu(network, network, self.bench.batches(batch_size))
        started = self.probes[who]
        return (started if started.batch_size == batch_size else self._probe(who, batch_size)).result()

    def _probe(self, who: str, batch_size: int) -> memory.Probe:
        settings = self.bench.settings
        job = memory.ProbeJob(
            recipe=self.bench.subjects[who].recipe,
            batch_size=batch_size,
            input_shape=tuple(self.bench.images.shape[1:]),
            images=self.images_file,
            precision=settings.precision,
            threads=settings.threads,
        )
        probe = memory.Probe(job)
        self.cleanup.callback(probe.stop)
        return probe
