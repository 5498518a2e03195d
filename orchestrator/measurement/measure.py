"""Measure one network, beside its baseline, into metric rows. The stage and the command both come here.

The order matters: what is counted needs no quiet machine and runs while the memory probes do; nothing is timed before
every probe has ended; batches that memory did not hold are not timed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from orchestrator.measurement.conditions import Settings, in_force
from orchestrator.measurement.counted import COUNTED, ask_strategies, count
from orchestrator.measurement.energy import ENERGIES, take_energy
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.peak import MEMORIES, PeakMemory
from orchestrator.measurement.rows import BASELINE, STUDENT, Rows
from orchestrator.measurement.subject import Bench, Subject, subject_of
from orchestrator.measurement.timed import TIMED, take_times
from orchestrator.measurement.training_memory import Training
from specs.metrics import METRICS, MetricRow

MEASURABLE = tuple(name for name in METRICS if name in {*COUNTED, *TIMED, *MEMORIES, *ENERGIES})
"""Metrics of a network that need neither labels nor training."""


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
        training: how the network was trained, if that is to be measured, too.
    """

    student: Recipe
    baseline: Recipe | None
    no_baseline: str
    images: Tensor
    images_are: str
    settings: Settings
    wanted: frozenset[str] = frozenset(MEASURABLE)
    training: Training | None = None

    def run(self) -> list[MetricRow]:
        """Take all wanted metrics, each once (at each batch size) or with the reason why not."""
        assert self.baseline is None or self.baseline.model is not None, "a baseline is a timm network"
        reference = None if self.baseline is None else self.baseline.model
        rows = Rows(self.wanted, reference, self.no_baseline)
        subjects = self._build()
        with ExitStack() as cleanup, in_force(self.settings) as environment:
            bench = Bench(subjects, self.images, self.images_are, self.settings, environment, rows)
            peak = PeakMemory(bench, cleanup, self.training)
            count(bench)
            if self.wanted.issuperset(MEASURABLE):
                ask_strategies(bench)
            does_not_fit = peak.take()
            take_times(bench, does_not_fit)
            take_energy(bench, does_not_fit)
        return rows.taken

    def _build(self) -> dict[str, Subject]:
        recipes = {STUDENT: self.student}
        if self.baseline is not None and any(name.endswith("_ratio") for name in self.wanted):
            recipes[BASELINE] = self.baseline
        return {who: subject_of(recipe, tuple(self.images.shape[1:])) for who, recipe in recipes.items()}
