"""What a stage costs beyond its own work when lanes run it, beside a fresh `TorchTrainer.fit` for each stage.

    python benchmarks/orchestration_overhead.py

Prints JSON. `lane.seconds_per_stage` is the claim (≤ 1 s): everything between a running cluster and the end of the
lane, its start included, less the stages' own work, over 20 stages. `lane.seconds_per_warm_stage` leaves the start of
the lane out; `lane.seconds_per_stage_with_cluster` has the start and end of an embedded cluster in it too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.connect import connect, usable_cpus
from cluster.local import LocalStore
from orchestrator.execution import driver
from orchestrator.execution.events import Event, LaneDown, RunStarted, StageFinished, StageStarted
from orchestrator.execution.lane import Runners
from orchestrator.planning.plan import Combination, NetworkSource, Plan, TrainStage
from orchestrator.training.interface import StageIO, WorkerContext
from specs.data import Sample
from specs.experiment import Experiment, StageSpec
from specs.model import ModelSpec
from specs.resources import ResourcesSpec
from specs.training import TrainingSpec

RUNNER = "benchmarks.orchestration_overhead:nearly_nothing"
NUM_STAGES = 20
NUM_FITS = 3
DATA, MODEL = Sample(kind="sample"), ModelSpec(model="vit_tiny_patch16_224")


def nearly_nothing(stage: TrainStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """A stage that commits one small file and says how long that took."""
    began = time.perf_counter()
    folder = io.scratch / "artefact"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    io.store.commit(f"stages/{stage.digest}", folder)
    return {"seconds": time.perf_counter() - began}


def make_plan() -> Plan:
    stages = [
        TrainStage(
            digest=f"{i:064x}",
            label=f"stage {i}",
            digest_parts={},
            parents=(),
            student=NetworkSource(model=MODEL),
            teacher=None,
            strategies=(),
            training=TrainingSpec(epochs=0),
            data=DATA,
            num_classes=10,
            seed=0,
        )
        for i in range(NUM_STAGES)
    ]
    wanted = tuple(Combination(name=s.label, labels={}, seed=0, stages=(s.digest, s.digest)) for s in stages)
    return Plan(experiment="overhead", stages={s.digest: s for s in stages}, combinations=wanted)


def in_a_lane() -> dict[str, float]:
    times: dict[str, float] = {}
    work = 0.0

    def on_event(event: Event) -> None:
        nonlocal work
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            times.setdefault("first stage", event.at)
        elif isinstance(event, StageFinished):
            work += event.result["seconds"]
            times["last stage"] = time.time()
        elif isinstance(event, RunStarted):
            times["cluster is up"] = now
        elif isinstance(event, LaneDown):
            times["lane is down"] = now

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        summary = driver.run(
            make_plan(),
            Experiment(
                name="overhead",
                data=DATA,
                student=MODEL,
                stages=[StageSpec(name="stage")],
                resources=ResourcesSpec(lanes=1),
            ),
            store=LocalStore(Path(folder)),
            on_event=on_event,
            runners=Runners(RUNNER, RUNNER),
        )
        total = time.perf_counter() - began
    assert len(summary.finished) == NUM_STAGES, summary
    return {
        "seconds_per_stage": (times["lane is down"] - times["cluster is up"] - work) / NUM_STAGES,
        "seconds_per_warm_stage": (times["last stage"] - times["first stage"] - work) / NUM_STAGES,
        "seconds_per_stage_with_cluster": (total - work) / NUM_STAGES,
        "own_seconds_per_stage": work / NUM_STAGES,
    }


def nothing() -> None:
    """The train function of a fresh fit."""


def fresh_fits() -> dict[str, Any]:
    seconds = []
    with connect() as cluster:
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import RunConfig

        for i in range(NUM_FITS):
            began = time.perf_counter()
            run_config: Any = RunConfig(name=f"fresh-{i}", storage_path=str(cluster.folder / "train"))
            TorchTrainer(nothing, scaling_config=ScalingConfig(num_workers=1), run_config=run_config).fit()
            seconds.append(time.perf_counter() - began)
    return {"seconds_per_stage": sum(seconds) / len(seconds), "samples": seconds}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lane, fresh = in_a_lane(), fresh_fits()
    print(
        json.dumps(
            {
                "benchmark": "orchestration_overhead",
                "stages": NUM_STAGES,
                "cpus": usable_cpus(),
                "lane": lane,
                "fresh_fit": fresh,
                "fresh_fit_over_lane": fresh["seconds_per_stage"] / lane["seconds_per_stage"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
