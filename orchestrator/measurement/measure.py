"""Measure one network, beside its baseline, into metric rows. The stage and the command both come here.

The order matters: what is counted needs no quiet machine and runs while the memory probes do; nothing is timed before
every probe has ended; batches that memory did not hold are not timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.measurement import compute, memory, timing
from orchestrator.measurement.conditions import Settings, in_force
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.precision import DTYPES
from orchestrator.measurement.rows import BASELINE, STUDENT, Rows
from orchestrator.measurement.samples import summary
from specs.metrics import MetricRow
from strategies.api import Strategy
from strategies.backbone import Student

LATENCIES = frozenset({"latency_ms", "latency_p95_ms", "latency_ratio"})
THROUGHPUTS = frozenset({"throughput", "throughput_ratio"})
MEMORIES = frozenset({"peak_memory_mib", "peak_memory_ratio"})
MEASURABLE = (
    *("params", "macs", "throughput", "latency_ms", "latency_p95_ms", "peak_memory_mib", "checkpoint_mib"),
    *("throughput_ratio", "latency_ratio", "params_ratio", "macs_ratio", "peak_memory_ratio", "checkpoint_ratio"),
)
"""Metrics of a network that need neither labels nor training."""
REPORT_BATCH = 64
"""Images a pass while strategies report of themselves."""


@dataclass
class Subject:
    """A network that is measured."""

    recipe: Recipe
    network: Student
    strategies: list[Strategy[Any]]
    macs: float | None
    """MACs of one image if all images cost the same."""
    params: int
    checkpoint: int
    """Bytes of the file that holds its weights."""


@dataclass
class Measurement:
    """One run of the clock and the counters.

    Attributes:
        student: the network; built here, so that it is moved and converted without harm to anyone.
        baseline: its reference, or `None`.
        no_baseline: why there is none.
        images: real (or random) images [B, C, side, side], float32 on CPU.
        images_are: what they are, for the conditions: `256 validation images`.
        settings: how it is timed.
        wanted: names of metrics.
    """

    student: Recipe
    baseline: Recipe | None
    no_baseline: str
    images: Tensor
    images_are: str
    settings: Settings
    wanted: frozenset[str] = frozenset(MEASURABLE)

    def run(self) -> list[MetricRow]:
        """Take all wanted metrics, each once (at each batch size) or with the reason why not."""
        assert self.baseline is None or self.baseline.model is not None, "a baseline is a timm network"
        reference = None if self.baseline is None else self.baseline.model
        self.rows = Rows(self.wanted, reference, self.no_baseline)
        self.subjects = self._build()
        self.varied = self.subjects[STUDENT].macs is None
        with ExitStack() as cleanup, in_force(self.settings) as environment:
            self.conditions = {**environment, "images": self.images_are, "input_size": self.images.shape[-1]}
            probes = self._start_probes(cleanup)
            self._count()
            self._ask_strategies()
            does_not_fit = self._peak_memory(probes, cleanup)
            self._time(does_not_fit)
        return self.rows.taken

    def _build(self) -> dict[str, Subject]:
        recipes = {STUDENT: self.student}
        if self.baseline is not None and any(name.endswith("_ratio") for name in self.wanted):
            recipes[BASELINE] = self.baseline
        return {who: _subject(recipe, tuple(self.images.shape[1:])) for who, recipe in recipes.items()}

    # What is counted

    def _count(self) -> None:
        params = {who: float(s.params) for who, s in self.subjects.items()}
        self.rows.add("params", params[STUDENT], self._counted())
        self.rows.add_ratio("params_ratio", params, self._counted())
        if self.wanted & {"macs", "macs_ratio"}:
            macs = {who: self._macs(s) for who, s in self.subjects.items()}
            values = {who: sum(m) / len(m) for who, m in macs.items()}
            samples = macs[STUDENT] if self.varied else []
            self.rows.add("macs", values[STUDENT], self._counted(), samples)
            self.rows.add_ratio("macs_ratio", values, self._counted())
        size = {who: s.checkpoint / compute.MIB for who, s in self.subjects.items()}
        self.rows.add("checkpoint_mib", size[STUDENT], self._counted())
        self.rows.add_ratio("checkpoint_ratio", size, self._counted())

    def _macs(self, subject: Subject) -> list[float]:
        if subject.macs is not None:
            return [subject.macs]
        network = subject.network.to(self.settings.device)
        return compute.macs_of_images(network, self.images.to(self.settings.device))

    def _counted(self) -> dict[str, JsonValue]:
        return {"counting": compute.RULE, "images": self.images_are, "input_size": self.images.shape[-1]}

    def _ask_strategies(self) -> None:
        """What the strategies report of themselves, as means over the images."""
        subject = self.subjects[STUDENT]
        if not self.wanted.issuperset(MEASURABLE) or not subject.strategies:
            return
        sums: dict[str, float] = {}
        network, device = subject.network.to(self.settings.device), self.settings.device
        for images in self.images.split(REPORT_BATCH):
            with torch.inference_mode():
                out = network(images.to(device))
            for strategy in subject.strategies:
                for name, value in strategy.measure(out).items():
                    key = f"{strategy.name}.{name}"
                    sums[key] = sums.get(key, 0.0) + value * len(images)
        for name, total in sums.items():
            self.rows.add_reported(name, total / len(self.images), self._counted())

    # Memory

    def _start_probes(self, cleanup: ExitStack) -> dict[str, memory.Probe]:
        """On CPU, start a fresh process for each network at the largest batch size."""
        if self.settings.device.type != "cpu" or not self.wanted & MEMORIES:
            return {}
        self.images_file: Path | None = None
        if self.varied:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            self.images_file = folder / "images.safetensors"
            save_file({"images": self.images}, self.images_file)
        return {who: self._probe(who, max(self.settings.batch_sizes), cleanup) for who in self.subjects}

    def _probe(self, who: str, batch_size: int, cleanup: ExitStack) -> memory.Probe:
        job = memory.ProbeJob(
            recipe=self.subjects[who].recipe,
            batch_size=batch_size,
            input_shape=tuple(self.images.shape[1:]),
            images=self.images_file,
            precision=self.settings.precision,
            threads=self.settings.threads,
        )
        probe = memory.Probe(job)
        cleanup.callback(probe.stop)
        return probe

    def _peak_memory(self, probes: Mapping[str, memory.Probe], cleanup: ExitStack) -> dict[str, set[int]]:
        """Peak at the largest batch size that fits. Returns network → batch sizes that did not fit."""
        does_not_fit: dict[str, set[int]] = {who: set() for who in self.subjects}
        if not self.wanted & MEMORIES:
            return does_not_fit

        def peak(who: str, batch_size: int) -> memory.Memory:
            if self.settings.device.type == "cuda":
                return self._peak_on_gpu(who, batch_size)
            started = probes[who]
            return (started if started.batch_size == batch_size else self._probe(who, batch_size, cleanup)).result()

        for batch_size in sorted(set(self.settings.batch_sizes), reverse=True):
            at = {"batch_size": batch_size}
            found: dict[str, memory.Memory] = {}
            why: dict[str, str] = {}
            for who in self.subjects:
                try:
                    found[who] = peak(who, batch_size)
                except timing.DoesNotFit as error:
                    does_not_fit[who].add(batch_size)
                    why[who] = str(error)
                except (memory.MemoryUnreadable, RuntimeError) as error:
                    why[who] = str(error)
            values = {who: m.peak / compute.MIB for who, m in found.items()}
            conditions = self.conditions | at | {"compile": False}  # probed as it is, in every process
            if STUDENT in found:
                parts = {
                    "weights": found[STUDENT].weights / compute.MIB,
                    "activations": found[STUDENT].activations / compute.MIB,
                }
                self.rows.add("peak_memory_mib", values[STUDENT], conditions, parts=parts)
            else:
                self.rows.add("peak_memory_mib", None, conditions, reason=why[STUDENT])
            self.rows.add_ratio("peak_memory_ratio", values, conditions, why)
            if STUDENT in found or batch_size not in does_not_fit[STUDENT]:
                break
        return does_not_fit

    def _peak_on_gpu(self, who: str, batch_size: int) -> memory.Memory:
        network = self._ready(who)
        with timing.out_of_memory_as_result(batch_size):
            return memory.peak_on_gpu(network, network, self._batches(batch_size))

    # Time

    def _time(self, does_not_fit: Mapping[str, set[int]]) -> None:
        if not self.wanted & (LATENCIES | THROUGHPUTS):
            return
        networks = {who: self._compiled(self._ready(who)) for who in self.subjects}
        if self.wanted & LATENCIES:
            self._latency(*self._blocks(networks, 1, does_not_fit, one_by_one=True))
        if self.wanted & THROUGHPUTS:
            for batch_size in dict.fromkeys(self.settings.batch_sizes):
                blocks, why = self._blocks(networks, batch_size, does_not_fit, one_by_one=False)
                self._throughput(batch_size, blocks, why)

    def _blocks(
        self,
        networks: Mapping[str, timing.Network],
        batch_size: int,
        does_not_fit: Mapping[str, set[int]],
        *,
        one_by_one: bool,
    ) -> tuple[dict[str, list[timing.Block]], dict[str, str]]:
        """Blocks of the networks that could be timed, and the reasons of those that could not."""
        able, why = dict(networks), {}
        for who, network in networks.items():
            try:
                if batch_size in does_not_fit[who]:
                    raise timing.DoesNotFit(batch_size)
                with torch.inference_mode(), timing.out_of_memory_as_result(batch_size):
                    network(self._batches(batch_size)[0])
            except RuntimeError as error:  # a kernel that this format lacks, a compiler that is not there, …
                why[who] = str(error).strip().splitlines()[0]
                del able[who]
        if STUDENT not in able:
            return {}, why
        batches = self._batches(batch_size)
        return timing.time_alternately(able, batches, self.settings.seconds, one_by_one=one_by_one), why

    def _latency(self, blocks: Mapping[str, Sequence[timing.Block]], why: Mapping[str, str]) -> None:
        conditions = self.conditions | {"batch_size": 1}
        ms = {who: [1000 * s for b in taken for s in b.seconds] for who, taken in blocks.items()}
        found = {who: summary(times) for who, times in ms.items()}
        if STUDENT in found:
            self.rows.add("latency_ms", found[STUDENT]["p50"], conditions, ms[STUDENT])
            self.rows.add("latency_p95_ms", found[STUDENT]["p95"], conditions, ms[STUDENT])
        else:
            self.rows.add("latency_ms", None, conditions, reason=why[STUDENT])
            self.rows.add("latency_p95_ms", None, conditions, reason=why[STUDENT])
        medians = {who: [summary(b.seconds)["p50"] for b in taken] for who, taken in blocks.items()}
        self.rows.add_paired_ratio("latency_ratio", medians, conditions, why)

    def _throughput(
        self, batch_size: int, blocks: Mapping[str, Sequence[timing.Block]], why: Mapping[str, str]
    ) -> None:
        conditions = self.conditions | {"batch_size": batch_size}
        speed = {who: [b.calls * batch_size / b.total for b in taken] for who, taken in blocks.items()}
        if STUDENT in speed:
            self.rows.add("throughput", summary(speed[STUDENT])["p50"], conditions, speed[STUDENT])
        else:
            self.rows.add("throughput", None, conditions, reason=why[STUDENT])
        self.rows.add_paired_ratio("throughput_ratio", speed, conditions, why)

    def _ready(self, who: str) -> Student:
        """The network on its device and in its precision."""
        return self.subjects[who].network.to(self.settings.device, DTYPES[self.settings.precision])

    def _compiled(self, network: Student) -> timing.Network:
        return torch.compile(network, dynamic=None if self.varied else False) if self.settings.compile else network

    def _batches(self, batch_size: int) -> list[Tensor]:
        images = self.images if self.varied else self.images[:batch_size]
        images = images.to(self.settings.device, DTYPES[self.settings.precision])
        return timing.batches_of(images, batch_size, varied=self.varied)


def _subject(recipe: Recipe, input_shape: tuple[int, ...]) -> Subject:
    network, strategies = recipe.build()
    C, height, width = input_shape
    macs = compute.static_macs(network, (C, height, width))
    checkpoint = compute.checkpoint_bytes(network.network_state())
    return Subject(recipe, network, strategies, macs, compute.num_parameters(network), checkpoint)
