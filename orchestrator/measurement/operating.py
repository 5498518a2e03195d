"""Operating points: what a trained network does at other settings of its knobs.

A network with an exit threshold, or one that merges r tokens a block, is a curve. At each setting the same weights are
composed anew and measured as the network itself was: beside the same baseline, on the same images, at the largest
batch size that was timed. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from orchestrator.errors import ResourceError
from orchestrator.measurement.measure import Measurement
from orchestrator.measurement.network import load_deployed
from orchestrator.measurement.trained import evaluation_conditions
from orchestrator.planning.plan import TrainStage
from orchestrator.training.data import validation_loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.evaluate import SMALLEST_BATCH, AnswersNotFinite, evaluate
from orchestrator.training.interface import WorkerContext
from orchestrator.training.precision import Precision
from orchestrator.training.seeding import determinism
from specs.data import DataSpec
from specs.metrics import MetricRow, OperatingPoint, row
from strategies.knobs import found_setting, knob_of

AT_LARGEST_BATCH = ("throughput", "throughput_ratio")
MEASURED = ("macs", *AT_LARGEST_BATCH, "latency_ms")
"""Metrics of a point besides `top1`."""
SHARE_OF_TIME = 0.25
"""Time for each timed quantity of a point, of what the network itself gets; and it is tried once. Points are many,
nobody ranks them, and their intervals say how sure they are."""


def measure_points(
    sweeps: Mapping[str, Sequence[float]],
    artefact: Path,
    measurement: Measurement,
    rows: Sequence[MetricRow],
    top1_at: Callable[[Mapping[str, float]], MetricRow],
    check_stop: Callable[[], None],
) -> list[OperatingPoint]:
    """All points, by knob and setting.

    Args:
        sweeps: knob → settings; the trained one is added where training found it.
        artefact: folder of the training stage's artefact.
        measurement: of the network as it was trained.
        rows: what that and training gave. They are the rows of the trained setting, so that nothing can disagree.
        top1_at: accuracy with knobs at other settings.
        check_stop: called between points; raises if the measurement is to end.
    """
    network, strategies = load_deployed(artefact)
    trained = {knob_of(s): found_setting(s, network) for s in strategies}
    timed = [r.conditions["batch_size"] for r in rows if r.name == "throughput" and r.value is not None]
    batch_size = max((b for b in timed if isinstance(b, int)), default=max(measurement.settings.batch_sizes))
    usual = measurement.settings
    clock = replace(usual, batch_sizes=(batch_size,), seconds=usual.seconds * SHARE_OF_TIME, attempts=1)
    points = []
    for knob, settings in sweeps.items():
        own = trained[knob]
        assert own is not None, "a network that is swept has a setting"
        for setting in sorted({*settings, own}):
            check_stop()
            if setting == own:
                taken = [r for r in rows if _belongs(r, batch_size)]
            else:
                student = measurement.student.model_copy(update={"turned": {knob: setting}})
                clocked = replace(
                    measurement, student=student, settings=clock, wanted=frozenset(MEASURED), training=None
                )
                taken = [top1_at({knob: setting}), *clocked.run()]
            points.append(OperatingPoint(knob=knob, setting=setting, trained=setting == own, rows=taken))
    return points


def _belongs(r: MetricRow, batch_size: int) -> bool:
    """Whether a row of the trained network is one that points have."""
    if r.name in AT_LARGEST_BATCH:
        return r.conditions.get("batch_size") == batch_size
    return r.name == "top1" or r.name in MEASURED


@dataclass(frozen=True)
class Accuracy:
    """Takes accuracy as the training stage did at its end: all validation images, in its precision."""

    trained: TrainStage
    artefact: Path
    data: DataSpec
    device: torch.device
    threads: int

    def top1_at(self, turned: Mapping[str, float]) -> MetricRow:
        """Row of `top1` with knobs at these settings.

        Raises:
            DataError: if validation images are missing.
        """
        network, strategies = load_deployed(self.artefact, turned)
        context = WorkerContext(device=str(self.device), threads=self.threads)
        value, reason = None, None
        with determinism(self.device, self.threads):
            try:
                precision = Precision(self.trained.training.precision, self.device)
                loader = validation_loader(self.data, SMALLEST_BATCH, self.device)
                label = " ".join([self.trained.label, *(f"{knob}={setting:g}" for knob, setting in turned.items())])
                network = network.to(self.device)
                value = evaluate(label, network, loader, strategies, precision, WorkerGroup(context)).outcomes.top1
            except (ResourceError, AnswersNotFinite) as error:
                reason = str(error)
        return row("top1", value, conditions=evaluation_conditions(self.trained), reason=reason)
