"""A finished experiment in a real store, written in the artefacts' own format, without training anything."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.local import LocalStore
from orchestrator.planning.plan import Combination, Dropped, MeasureStage, NetworkSource, Plan, TrainStage
from orchestrator.training.outcomes import Outcomes
from specs.data import Sample
from specs.experiment import Experiment, StageSpec
from specs.measurement import MeasurementSpec
from specs.metrics import MetricRow, row
from specs.model import ModelSpec
from specs.training import TrainingSpec

CONDITIONS = {"device": "cpu", "precision": "fp32", "threads": 1, "versions": {"torch": "2.14.1"}}
EPOCHS = 3


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def outcomes(seed: str, num_classes: int = 10) -> Outcomes:
    """Answers to 100 images of each class, of a network that is a little too sure."""
    rng = np.random.default_rng(int(seed[:8], 16))
    chances = np.full((num_classes, num_classes), 0.1 / num_classes) + 0.9 * np.eye(num_classes)
    confusion = np.stack([rng.multinomial(100, row) for row in chances])
    images = np.array([0, 0, 0, 0, 0, 10, 20, 30, 40, 60, 80, 100, 160, 200, 300]) * num_classes / 10
    confidence = (np.arange(15) + 0.5) / 15
    hits = np.floor(images * confidence**1.2)
    return Outcomes(
        tuple(f"digit {i}" for i in range(num_classes)), confusion, np.stack([images, hits, images * confidence], 1)
    )


@dataclass
class Lab:
    """An experiment of merging × distillation × seeds, all students of one seed taught by one teacher."""

    root: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    name: str = "lab"
    merging: tuple[str, ...] = ("none", "r2", "r4")
    distill: tuple[str, ...] = ("none", "soft")
    experiment: Experiment = field(init=False)
    store: LocalStore = field(init=False)
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.store = LocalStore(self.root / "store")
        self.experiment = Experiment(
            name=self.name,
            description="Does merging still pay on top of distillation?",
            data=Sample(kind="sample"),
            student=ModelSpec(model="vit_tiny_patch16_224", args={"depth": 4}),
            stages=[StageSpec(name="teacher"), StageSpec(name="student")],
        )
        self.plan = self._plan()

    def _plan(self) -> Plan:
        stages: dict[str, TrainStage | MeasureStage] = {}
        combinations = []
        for seed in self.seeds:
            teacher = self._train("teacher", seed, ())
            stages[teacher.digest] = teacher
            for merging in self.merging:
                for distill in self.distill:
                    name = f"merging={merging},distill={distill}"
                    student = self._train(f"student[{name}]", seed, (teacher.digest,))
                    measure = MeasureStage(
                        digest=digest("measure", student.digest),
                        label=f"measure[{name}]",
                        digest_parts={},
                        parents=(student.digest,),
                        measurement=MeasurementSpec(),
                        data=self.experiment.data,
                        num_classes=10,
                        input_size=28,
                    )
                    stages |= {student.digest: student, measure.digest: measure}
                    combinations.append(
                        Combination(
                            name=name,
                            labels={"merging": merging, "distill": distill},
                            seed=seed,
                            stages=(teacher.digest, student.digest, measure.digest),
                        )
                    )
        return Plan(
            experiment=self.name,
            stages=stages,
            combinations=tuple(combinations),
            dropped=(Dropped(name="merging=all,distill=none", reasons=("no token is left after block 3",)),),
        )

    def _train(self, label: str, seed: int, parents: tuple[str, ...]) -> TrainStage:
        return TrainStage(
            digest=digest(self.name, label, seed),
            label=label,
            digest_parts={},
            parents=parents,
            student=NetworkSource(model=ModelSpec(model="vit_tiny_patch16_224", args={"depth": 4, "num_classes": 10})),
            teacher=NetworkSource(stage=parents[0]) if parents else None,
            strategies=(),
            training=TrainingSpec(epochs=EPOCHS),
            data=self.experiment.data,
            num_classes=10,
            seed=seed,
        )

    def combination(self, merging: str, distill: str, seed: int = 0) -> Combination:
        name = f"merging={merging},distill={distill}"
        return next(c for c in self.plan.combinations if (c.name, c.seed) == (name, seed))

    def history(self, stage: TrainStage) -> list[dict[str, Any]]:
        rng = random.Random(stage.digest)
        return [
            {
                "kind": "epoch",
                "stage": stage.digest,
                "epoch": epoch,
                "step": 10 * epoch,
                "total_steps": 10 * EPOCHS,
                "values": {"loss": 2.3 / epoch + rng.random() / 10, "val_top1": 60 + 8 * epoch + rng.random()},
            }
            for epoch in range(1, EPOCHS + 1)
        ]

    def train(self, stage: TrainStage, **result: Any) -> None:
        folder = self._folder()
        history = self.history(stage)
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
        (folder / "result.json").write_text(
            json.dumps(
                {
                    "metrics": {"val_top1": history[-1]["values"]["val_top1"]},
                    "seconds": 10.0 + len(stage.label),
                    "images_per_s": 900.0,
                    "epochs": EPOCHS,
                    "steps": 30,
                    "environment": {"torch": "2.14.1", "python": "3.11"},
                }
                | result
            )
        )
        (folder / "stage.json").write_text(stage.model_dump_json())
        (folder / "evaluation.json").write_text(outcomes(stage.digest).to_json())
        (folder / "model.json").write_text('{"format_version": 1}')
        (folder / "model.safetensors").write_bytes(b"weights of " + stage.digest.encode())
        self.store.commit(f"stages/{stage.digest}", folder)

    def rows(self, combination: Combination, conditions: Mapping[str, Any] = CONDITIONS) -> list[MetricRow]:
        rng = random.Random(f"{combination.name}{combination.seed}")
        r = {"none": 0, "r2": 2, "r4": 4}.get(combination.labels["merging"], 1)
        soft = combination.labels["distill"] == "soft"
        cost = 1 - 0.09 * r
        timed = dict(conditions)
        taken = [
            row("top1", 90 - 0.4 * r + 1.5 * soft + rng.gauss(0, 0.3), conditions={"device": "cpu"}),
            row("top5", 99 + rng.random() / 2, conditions={"device": "cpu"}),
            row("params", 1_234_567.0),
            row("params_ratio", 0.22),
            row("macs", 56_000_000 * cost, conditions=timed | {"images": 256}),
            row("macs_ratio", 0.4 * cost, conditions=timed | {"images": 256}),
            row("latency_ms", 4.2 * cost + rng.gauss(0, 0.05), conditions=timed | {"batch_size": 1}),
            row("latency_ratio", 0.5 * cost, conditions=timed | {"batch_size": 1}),
            row("peak_memory_mib", None, reason="no memory counter on this device", conditions=timed),
            MetricRow(name="token_merging.kept", value=1 - r / 10, unit="", direction="none"),
        ]
        for size in (1, 64):
            speed = (250 if size == 1 else 1800) / cost + rng.gauss(0, 5)
            taken.append(row("throughput", speed, conditions=timed | {"batch_size": size}))
            taken.append(row("throughput_ratio", speed / 900, conditions=timed | {"batch_size": size}))
        return taken

    def measure(self, combination: Combination, rows: list[MetricRow] | None = None) -> None:
        stage = self.plan.stages[combination.measured_by]
        folder = self._folder()
        taken = self.rows(combination) if rows is None else rows
        (folder / "rows.json").write_text(json.dumps([r.model_dump(mode="json") for r in taken]))
        (folder / "stage.json").write_text(stage.model_dump_json())
        (folder / "result.json").write_text(json.dumps({"seconds": 6.5}))
        self.store.commit(f"stages/{stage.digest}", folder)

    def finish(self, *, measured: Callable[[Combination], bool] = lambda c: True) -> Lab:
        for stage in self.plan.walk():
            if isinstance(stage, TrainStage):
                self.train(stage)
        for combination in self.plan.combinations:
            if measured(combination):
                self.measure(combination)
        return self

    def _folder(self) -> Path:
        folder = self.root / "scratch"
        folder.mkdir(parents=True)
        return folder


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Planned, nothing run yet."""
    return Lab(tmp_path)


@pytest.fixture
def finished(tmp_path: Path) -> Lab:
    """Everything trained and measured."""
    return Lab(tmp_path).finish()


@pytest.fixture
def lab_of(tmp_path: Path) -> Callable[..., Lab]:
    """Labs with other seeds, names and axes, each in a folder of its own."""
    return lambda **options: Lab(tmp_path / str(options.get("name", "lab")), **options)
