"""What tests of the record share: what a run says, and whether MLflow has all of it once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.events import StageFinished, StageStarted
from orchestrator.planning.plan import TrainStage
from orchestrator.reporting import record
from orchestrator.reporting.results import read_results, rows_by_column
from orchestrator.reporting.tracker import Tracker
from orchestrator.reporting.writer import Patience
from orchestrator.training.interface import Progress


def refuse(message: str) -> None:
    pytest.fail(message)


def tracker(lab: Any, uri: str, **options: Any) -> Tracker:
    options = {"warn": refuse, "journals": lab.root / "journal", "patience": Patience(0.05, 0.2, 3)} | options
    return Tracker(uri, lab.name, lab.plan, lab.experiment, **options)


def events(lab: Any, stages: list[Any] | None = None) -> list[Any]:
    """What a run of these stages says."""
    said: list[Any] = []
    for stage in stages or lab.plan.walk():
        said.append(StageStarted(stage.digest, lane=0, attempt=1, at=0.0))
        if isinstance(stage, TrainStage):
            said.append(Progress("start", stage.digest))
            said += [Progress(**line) for line in lab.history(stage)]
        said.append(StageFinished(stage.digest, lane=0, seconds=1.0))
    return said


def query(uri: str, sql: str) -> list[tuple[Any, ...]]:
    """Straight from the database, past MLflow's own views."""
    if uri.startswith("postgresql://"):
        import psycopg2

        with contextlib.closing(psycopg2.connect(uri)) as server, server.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        return connection.execute(sql).fetchall()


def runs(lab: Any, uri: str) -> dict[str, Any]:
    """`kind:key` → run; two runs of one key fail the test."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(lab.name)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = Counter(f"{r.data.tags['slimvit.kind']}:{r.data.tags['slimvit.key']}" for r in found)
    assert max(keys.values(), default=1) == 1
    return {f"{r.data.tags['slimvit.kind']}:{r.data.tags['slimvit.key']}": r for r in found}


def check_complete(
    lab: Any, uri: str, database: str | None = None, files_of: Callable[[Any], set[str]] | None = None
) -> None:
    """Everything of the store is there, once.

    Args:
        uri: tracking address.
        database: the server's database, if the address is not that of one.
        files_of: gives the files of a run, if they do not lie in a local folder.
    """
    database, files_of = database or uri, files_of or artefacts
    found = runs(lab, uri)
    plan = lab.plan
    assert len(found) == 1 + len(plan.combinations) + len(plan.stages)
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    assert (
        query(database, "select run_uuid, key, step, count(*) from metrics group by 1, 2, 3 having count(*) > 1") == []
    )
    parent = found[f"experiment:{plan.experiment}"]
    owners = record.owners(plan)
    rows = rows_by_column(plan, read_results(plan, lab.store))
    for c in plan.combinations:
        run = found[f"combination:{c.name} #{c.seed}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.params["merging"], run.data.params["seed"]) == (c.labels["merging"], str(c.seed))
        expected = {k: r.value for k, r in rows[c.name, c.seed].items() if r.value is not None}
        assert run.data.metrics == pytest.approx(expected)
        stages = json.loads(run.data.tags["slimvit.stages"])
        assert stages == {plan.stages[d].label: found[f"stage:{d}"].info.run_id for d in c.stages}
    for digest, stage in plan.stages.items():
        run = found[f"stage:{digest}"]
        owner = owners[digest]
        owner_run = found[f"combination:{owner.name} #{owner.seed}"]
        assert run.data.tags["mlflow.parentRunId"] == owner_run.info.run_id
        files = files_of(run)
        if isinstance(stage, TrainStage):
            assert {"history.jsonl", "result.json", "stage.json", "checkpoint/model.safetensors"} <= files
            assert run.data.params["training.optimizer.lr"] == "0.001"
            curve = query(
                database,
                f"select step, value from metrics where run_uuid='{run.info.run_id}' and key='val_top1' order by step",
            )
            assert curve == [(h["epoch"], h["values"]["val_top1"]) for h in lab.history(stage)]
        else:
            assert {"rows.json", "stage.json"} <= files
    assert {"spec.yaml", "plan.json", "environment.json", "comparison.json", "comparison.csv"} <= files_of(parent)


def artefacts(run: Any) -> set[str]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
