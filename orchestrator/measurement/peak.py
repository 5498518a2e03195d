"""Rows of peak memory: of inference, at the largest stated batch size that fits, and of training."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import save_file

from orchestrator.errors import SlimvitError
from orchestrator.measurement import compute, timing
from orchestrator.measurement.growth import MemoryUnreadable
from orchestrator.measurement.memory import InferenceJob, Job, Memory, Probe, inference_peak
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.subject import Bench
from orchestrator.measurement.training_memory import Training
from specs.metrics import row

MEMORIES = ("peak_memory_mib", "peak_memory_ratio")
"""Metrics that are taken here; besides `train_memory_mib`, where there was training."""
TRAINING = "training"
"""Name of the job that trains, beside those of the networks on the bench."""


class PeakMemory:
    """Peak memory of the networks on the bench, and of training the student.

    On CPU a process starts at once, at the largest batch size, and is asked later: meanwhile there is other work.
    """

    def __init__(self, bench: Bench, cleanup: ExitStack, training: Training | None = None) -> None:
        self.bench, self.cleanup, self.training = bench, cleanup, training
        self.wanted = bool(bench.rows.wanted.intersection(MEMORIES))
        self.images_file: Path | None = None
        self.no_training = None if training is None else training.why_not
        self.on_cpu = bench.settings.device.type == "cpu"
        if not self.on_cpu or not self.wanted:
            return
        if bench.varied:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            self.images_file = folder / "images.safetensors"
            save_file({"images": bench.images}, self.images_file)
        self.largest = max(bench.settings.batch_sizes)
        jobs: dict[str, Job] = {who: self._job(who, self.largest) for who in bench.subjects}
        if training is not None and training.why_not is None:
            try:
                jobs[TRAINING] = training.job(bench.settings.threads)
            except (SlimvitError, FileNotFoundError, ValueError) as error:
                self.no_training = str(error).splitlines()[0]
        self.probe = self._start(jobs)

    def take(self) -> dict[str, set[int]]:
        """Add the rows. Returns network → batch sizes that did not fit."""
        bench = self.bench
        does_not_fit: dict[str, set[int]] = {who: set() for who in bench.subjects}
        if not self.wanted:
            return does_not_fit
        for batch_size in sorted(set(bench.settings.batch_sizes), reverse=True):
            found: dict[str, Memory] = {}
            why: dict[str, str] = {}
            for who in bench.subjects:
                try:
                    found[who] = self._peak(who, batch_size)
                except timing.DoesNotFit as error:
                    does_not_fit[who].add(batch_size)
                    why[who] = str(error)
                except (MemoryUnreadable, RuntimeError) as error:
                    why[who] = str(error)
            self._add(batch_size, found, why)
            if STUDENT in found or batch_size not in does_not_fit[STUDENT]:
                break
        if self.training is not None:
            self._add_training(self.training)
        return does_not_fit

    def _add(self, batch_size: int, found: dict[str, Memory], why: dict[str, str]) -> None:
        rows = self.bench.rows
        # Probed as it is, in every process: nothing is compiled.
        conditions = self.bench.conditions | {"batch_size": batch_size, "compile": False}
        values = {who: m.peak / compute.MIB for who, m in found.items()}
        if STUDENT in found:
            rows.add("peak_memory_mib", values[STUDENT], conditions, parts=_in_mib(found[STUDENT].parts))
        else:
            rows.add("peak_memory_mib", None, conditions, reason=why[STUDENT])
        rows.add_ratio("peak_memory_ratio", values, conditions, why)

    def _add_training(self, training: Training) -> None:
        memory, reason = None, self.no_training
        if reason is None:
            try:
                memory = self.probe.result(TRAINING) if self.on_cpu else self._training_on_gpu(training)
            except (RuntimeError, ValueError, SlimvitError) as error:
                reason = str(error).splitlines()[0]
        self.bench.rows.taken.append(
            row(
                "train_memory_mib",
                None if memory is None else memory.peak / compute.MIB,
                summary={} if memory is None else _in_mib(memory.parts),
                conditions=self.bench.conditions | training.conditions,
                reason=reason,
            )
        )

    def _peak(self, who: str, batch_size: int) -> Memory:
        if not self.on_cpu:
            network = self.bench.ready(who)
            with timing.out_of_memory_as_result(batch_size):
                return inference_peak(network, self.bench.batches(batch_size))
        probe = self.probe if batch_size == self.largest else self._start({who: self._job(who, batch_size)})
        return probe.result(who)

    def _training_on_gpu(self, training: Training) -> Memory:
        with timing.out_of_memory_as_result(training.micro_batch):
            return training.peak(self.bench.settings.device)

    def _start(self, jobs: dict[str, Job]) -> Probe:
        probe = Probe(jobs)
        self.cleanup.callback(probe.stop)
        return probe

    def _job(self, who: str, batch_size: int) -> InferenceJob:
        C, height, width = self.bench.images.shape[1:]
        return InferenceJob(
            recipe=self.bench.subjects[who].recipe,
            batch_size=batch_size,
            input_shape=(C, height, width),
            images=self.images_file,
            precision=self.bench.settings.precision,
            threads=self.bench.settings.threads,
        )


def _in_mib(parts: dict[str, int]) -> dict[str, float]:
    return {name: size / compute.MIB for name, size in parts.items()}
