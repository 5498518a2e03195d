"""What the record in MLflow says: runs, tags, parameters. How it is written: ``recording.py``, ``tracking.py``.

One parent run per plan, below it one run per combination and seed, below that one run per stage. A stage that several
combinations share is one run, below the first combination that uses it; the others point to it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import yaml

from orchestrator.planning.plan import Combination, Plan, TrainStage
from specs.experiment import Experiment

MAX_PARAMETER = 6000
"""Characters of a parameter that MLflow keeps; it cuts longer ones without a word."""

MAX_TAG = 8000
"""Characters of a tag that MLflow takes; it refuses longer ones."""

PLAN, KIND, KEY, RECORDED = "slimvit.plan", "slimvit.kind", "slimvit.key", "slimvit.recorded"
"""Tags: digest of the plan; `experiment`, `combination` or `stage`; which one; digest of what is recorded of it. A
stage whose artefact was damaged and is computed anew keeps its name, but not that digest."""

PARENT = "mlflow.parentRunId"
"""MLflow's own tag: the run above."""

REASON = "slimvit.reason"
"""Tag: why a run failed, or was given up."""

_PACKAGES = ("slimvit", "torch", "torchvision", "timm", "ray", "mlflow", "numpy", "pydantic")


def plan_digest(plan: Plan) -> str:
    """Identity of the record: the same spec goes on with the same parent run, a changed one starts another.

    Parameters of a run cannot be changed in MLflow, so a changed plan must not share a run with the old one.
    """
    if plan.search is not None:  # its combinations are not known at first, and its parent run must be
        return hashlib.sha256(json.dumps([plan.experiment, plan.search.digest]).encode()).hexdigest()
    content = [plan.experiment, [[c.name, c.seed, *c.stages] for c in plan.combinations]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def identity(uri: str, experiment_name: str, plan: Plan) -> list[str]:
    """Where the record of a plan is: tracking address, MLflow experiment, plan."""
    return [str(sqlite_file(uri) or uri), experiment_name, plan_digest(plan)]


def owners(plan: Plan) -> dict[str, Combination]:
    """Stage → the first combination that uses it."""
    first: dict[str, Combination] = {}
    for combination in plan.combinations:
        for digest in combination.stages:
            first.setdefault(digest, combination)
    return first


def experiment_parameters(plan: Plan, experiment: Experiment) -> dict[str, str]:
    """Parameters of the parent run. Of a search none that grows with it: MLflow changes no parameter."""
    if plan.search is not None and experiment.search is not None:
        return parameters(
            {
                "student": experiment.student.model,
                "data": experiment.data.model_dump(mode="json"),
                "search": experiment.search.model_dump(mode="json", exclude={"trials"}),
            }
        )
    return parameters(
        {
            "student": experiment.student.model,
            "data": experiment.data.model_dump(mode="json"),
            "combinations": len({c.name for c in plan.combinations}),
            "stages": len(plan.stages),
            "seeds": sorted({c.seed for c in plan.combinations}),
        }
    )


def combination_parameters(plan: Plan, combination: Combination) -> dict[str, str]:
    """Labels and seed, and what matters most of its last training stage, so that runs can be sorted by them."""
    stage = plan.stages[combination.result]
    assert isinstance(stage, TrainStage), "the stage before the measurement trains"
    network = stage.student.model.model if stage.student.model else None
    return parameters(
        {
            **combination.labels,
            "seed": combination.seed,
            "student": network,
            "strategies": [s.model_dump(mode="json") for s in stage.strategies],
            "epochs": stage.training.epochs,
            "batch_size": stage.training.batch_size,
            "lr": stage.training.optimizer.lr,
        }
    )


def stage_parameters(plan: Plan, digest: str) -> dict[str, str]:
    """Everything that determines a stage, with dotted keys; `stage.json` beside it has the same in full."""
    dump = plan.stages[digest].model_dump(mode="json", exclude={"digest", "digest_parts", "parents", "kind"})
    return parameters(dump)


def parameters(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten to dotted keys and text; a text MLflow would cut is replaced by a pointer to the artefact."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= parameters(value, f"{prefix}{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        flat[prefix + key] = text if len(text) <= MAX_PARAMETER else f"({len(text)} characters; see stage.json)"
    return flat


def environment() -> dict[str, Any]:
    """Versions on the machine that the run was started from; each stage's `result.json` has those of its workers."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": versions}


def resolved_spec(experiment: Experiment) -> str:
    """The spec with every default written out; `slimvit run` on it repeats the experiment."""
    text: str = yaml.safe_dump(
        experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    return text


def fingerprint(comparison: str, report: Path | None) -> str:
    """What a complete record was made from; equal ones need no second writing."""
    content = hashlib.sha256(comparison.encode())
    if report is not None:
        content.update(report.read_bytes())
    return content.hexdigest()


def sqlite_file(uri: str) -> Path | None:
    """Absolute path of the database file of a `sqlite:///` address; `None` for servers."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
