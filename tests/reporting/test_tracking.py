"""The record in a real MLflow on SQLite: complete, without duplicates, whatever is replayed, repeated or killed."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.execution.events import PlanGrew, StageFailed, StageStarted, StageStopped
from orchestrator.planning.plan import SearchPlan
from orchestrator.reporting import record
from orchestrator.training.interface import Progress
from tests.reporting.tracked import artefacts, check_complete, events, query, runs, tracker


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow takes seconds to make a fresh one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def small(lab_of: Callable[..., Any]) -> Any:
    return lab_of(seeds=(0, 1), merging=("none", "r2"), distill=("soft",))


def test_live_then_synced_twice_then_replayed(small: Any, uri: str, tmp_path: Path) -> None:
    small.finish()
    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    first = tracker(small, uri)
    for event in events(small):
        first.on_event(event)
    assert first.sync(small.plan, small.store, report)
    assert first.sync(small.plan, small.store, report)
    first.close()
    check_complete(small, uri)
    before = query(uri, "select count(*) from metrics") + query(uri, "select count(*) from params")

    again = tracker(small, uri)
    for event in events(small):
        again.on_event(event)
    assert again.sync(small.plan, small.store, report)
    again.close()
    check_complete(small, uri)
    assert before == query(uri, "select count(*) from metrics") + query(uri, "select count(*) from params")
    parent = runs(small, uri)["experiment:lab"]
    assert "report.html" in artefacts(parent)
    spec = yaml.safe_load((Path(parent.info.artifact_uri.removeprefix("file://")) / "spec.yaml").read_text())
    assert spec == small.experiment.model_dump(mode="json")


def test_sync_alone_completes_what_was_never_seen_live(small: Any, uri: str) -> None:
    small.finish()
    late = tracker(small, uri)
    assert late.sync(small.plan, small.store)
    late.close()
    check_complete(small, uri)


def test_stages_are_recorded_as_they_finish(small: Any, uri: str) -> None:
    teacher = next(small.plan.walk())
    small.train(teacher)
    live = tracker(small, uri, store=small.store)
    for event in events(small, [teacher]):
        live.on_event(event)
    live.close()
    run = runs(small, uri)[f"stage:{teacher.digest}"]
    assert run.info.status == "FINISHED"
    assert "checkpoint/model.safetensors" in artefacts(run)


def test_a_search_grows_and_gives_trials_up(small: Any, uri: str) -> None:
    full, search = small.plan, SearchPlan(digest="d", algorithm="random", space={}, num_trials=2, proposed=1, judged=0)
    first, last = full.combinations[0].name, full.combinations[-1].name
    begun = tuple(c for c in full.combinations if c.name == first)
    stages = {d: s for d, s in full.stages.items() if any(d in c.stages for c in begun)}
    small.plan = full.model_copy(update={"combinations": begun, "stages": stages, "search": search})
    small.finish()
    live = tracker(small, uri, store=small.store)
    for event in events(small):
        live.on_event(event)
    grown = full.model_copy(update={"search": search, "stopped": {last: "beaten by far"}})
    new = tuple(d for d in full.stages if d not in stages)
    live.on_event(PlanGrew(grown, new))
    live.on_event(StageStarted(new[0], lane=0, attempt=1, at=0.0))
    live.on_event(StageStopped(new[0], "beaten by far"))
    assert live.sync(grown, small.store), "what was given up is not waited for"
    live.close()
    found = runs(small, uri)
    assert found["experiment:lab"].info.status == "FINISHED"
    for c in grown.combinations:
        run = found[f"combination:{c.name} #{c.seed}"]
        given_up = ("KILLED", "beaten by far") if c.name == last else ("FINISHED", None)
        assert (run.info.status, run.data.tags.get(record.REASON)) == given_up
    stopped = found[f"stage:{new[0]}"]
    assert (stopped.info.status, stopped.data.tags[record.REASON]) == ("KILLED", "beaten by far")


def test_killed_in_the_middle_and_gone_on(small: Any, uri: str) -> None:
    """kill -9 leaves runs that say RUNNING; the next process goes on with them, and repeats epochs it replays."""
    script = """
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from conftest import Lab
        from orchestrator.execution.events import StageStarted
        from orchestrator.reporting.tracker import Tracker
        from orchestrator.training.interface import Progress
        lab = Lab(Path(sys.argv[2]), seeds=(0, 1), merging=("none", "r2"), distill=("soft",))
        tracker = Tracker(sys.argv[3], lab.name, lab.plan, lab.experiment, journals=lab.root / "journal")
        stage = next(lab.plan.walk())
        tracker.on_event(StageStarted(stage.digest, 0, 1, 0.0))
        for line in lab.history(stage)[:2]:
            tracker.on_event(Progress(**line))
        tracker._writer.call(lambda record: print("written", flush=True))
        time.sleep(60)
    """
    arguments = [str(Path(__file__).parent), str(small.root), uri]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    stage = next(small.plan.walk())
    left = runs(small, uri)
    assert left[f"stage:{stage.digest}"].info.status == "RUNNING"
    assert len(left) == 3

    small.finish()
    second = tracker(small, uri)
    for event in events(small):
        second.on_event(event)
    assert second.sync(small.plan, small.store)
    second.close()
    check_complete(small, uri)
    assert runs(small, uri)[f"stage:{stage.digest}"].info.run_id == left[f"stage:{stage.digest}"].info.run_id


def test_values_that_are_no_numbers_are_not_sent(small: Any, uri: str) -> None:
    stage = next(small.plan.walk())
    live = tracker(small, uri)
    live.on_event(StageStarted(stage.digest, 0, 1, 0.0))
    live.on_event(Progress("epoch", stage.digest, epoch=1, values={"loss": math.nan, "lr": math.inf, "val_top1": 7.0}))
    live.close()
    assert query(uri, "select key, value, step, is_nan from metrics") == [("val_top1", 7.0, 1, 0)]


def test_stopped_and_failed_runs_say_so_until_they_finish(small: Any, uri: str) -> None:
    teacher, student = list(small.plan.walk())[:2]
    live = tracker(small, uri)
    live.on_event(StageStarted(teacher.digest, 0, 1, 0.0))
    live.on_event(StageStarted(student.digest, 0, 1, 0.0))
    live.on_event(StageFailed(student.digest, "the loss is NaN at step 3"))
    live.close()
    found = runs(small, uri)
    assert found[f"stage:{teacher.digest}"].info.status == "KILLED"
    assert found[f"stage:{student.digest}"].info.status == "FAILED"
    combination = found["combination:merging=none,distill=soft #0"]
    assert combination.info.status == "FAILED"
    assert "the loss is NaN at step 3" in combination.data.tags["slimvit.reason"]
    small.finish()
    later = tracker(small, uri)
    assert later.sync(small.plan, small.store)
    later.close()
    check_complete(small, uri)
    assert "slimvit.reason" not in runs(small, uri)["combination:merging=none,distill=soft #0"].data.tags


def test_a_partly_finished_plan_is_recorded_as_far_as_it_is(small: Any, uri: str) -> None:
    small.finish(measured=lambda c: c.seed == 0)
    late = tracker(small, uri)
    assert late.sync(small.plan, small.store)
    late.close()
    found = runs(small, uri)
    assert found["experiment:lab"].info.status == "KILLED"
    assert found["combination:merging=r2,distill=soft #0"].info.status == "FINISHED"
    assert found["combination:merging=r2,distill=soft #1"].data.metrics == {}


@pytest.mark.parametrize("live", [True, False])
def test_what_is_computed_anew_replaces_what_was_recorded(small: Any, uri: str, live: bool) -> None:
    """A measurement and a training that were damaged, deleted, and came out otherwise."""
    small.finish()
    first = tracker(small, uri, store=small.store)
    assert first.sync(small.plan, small.store)
    first.close()
    before = runs(small, uri)
    combination = small.plan.combinations[0]
    student, measured = (small.plan.stages[d] for d in (combination.result, combination.measured_by))
    for stage in (student, measured):
        small.store.delete(f"stages/{stage.digest}")
    second = tracker(small, uri, store=small.store)
    if live:
        second.on_event(StageStarted(student.digest, lane=0, attempt=1, at=0.0))
        second.on_event(StageFailed(student.digest, "no room"))
        second.sync(small.plan, small.store)
        assert runs(small, uri)[f"stage:{student.digest}"].info.status == "FAILED"
    small.train(student, seconds=77.0)
    rows = [r.model_copy(update={"value": 12.5}) if r.name == "top1" else r for r in small.rows(combination)]
    small.measure(combination, [r for r in rows if r.name != "macs"])
    for event in events(small, [student, measured]) if live else ():
        second.on_event(event)
    assert second.sync(small.plan, small.store)
    second.close()
    check_complete(small, uri)
    found = runs(small, uri)
    assert found[f"combination:{combination.name} #0"].data.metrics["top1"] == 12.5
    assert found[f"stage:{student.digest}"].data.metrics["final.seconds"] == 77.0
    changed = {key for key in found if found[key].info.run_id != before[key].info.run_id}
    assert changed == {f"combination:{combination.name} #0", f"stage:{student.digest}", f"stage:{measured.digest}"}, (
        "and nothing else"
    )


def test_another_plan_has_another_parent(small: Any, lab_of: Callable[..., Any], uri: str) -> None:
    other = lab_of(seeds=(0,), merging=("none",), distill=("soft",))
    assert record.plan_digest(other.plan) != record.plan_digest(small.plan)
    for lab in (small, other):
        live = tracker(lab, uri)
        live.sync(lab.plan, lab.store)
        live.close()
    assert query(uri, "select count(*) from tags where key='slimvit.kind' and value='experiment'") == [(2,)]


def test_a_dead_server_is_one_warning(small: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        warnings: list[str] = []
        live = tracker(small, f"http://127.0.0.1:{taken.getsockname()[1]}", warn=warnings.append)
        for event in events(small):
            live.on_event(event)
        assert not live.sync(small.plan, small.store)
        live.close()
    assert len(warnings) == 1
    assert "connection refused" in warnings[0]
    assert "completes the record" in warnings[0]


def test_a_fresh_database_is_made_with_its_folder(small: Any, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'folder' / 'mlflow.db'}"
    live = tracker(small, uri)
    assert live.sync(small.plan, small.store)
    live.close()
    assert (tmp_path / "new" / "folder" / "mlflow-artifacts").is_dir()


def test_long_parameters_point_to_their_artefact() -> None:
    flat = record.parameters({"a": {"b": "x" * 7000, "c": [1, 2]}, "d": None, "e": {}})
    assert flat == {"a.b": "(7000 characters; see stage.json)", "a.c": "[1, 2]", "d": "null", "e": "{}"}
