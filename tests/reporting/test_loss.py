"""The record through the loss of the server: nothing is missing afterwards, nothing is there twice, nobody waited."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.events import StageFailed, StageStarted
from orchestrator.planning.plan import TrainStage
from orchestrator.reporting.tracker import journal_home
from orchestrator.reporting.writer import Patience
from orchestrator.training.interface import Progress
from tests.reporting.mlflow_server import MlflowServer
from tests.reporting.tracked import check_complete, events, query, runs, tracker

ROOT = Path(__file__).resolve().parents[2]
TWICE = "select run_uuid, key, step, count(*) from metrics group by 1, 2, 3 having count(*) > 1"


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("server")
    MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return MlflowServer(folder, folder / "mlflow.db")


@pytest.fixture
def server(one_server: MlflowServer) -> Iterator[MlflowServer]:
    yield one_server
    one_server.cut = lambda method, path: False
    one_server.down()


@pytest.fixture
def small(lab_of: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """A name of its own, because all tests share one database."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return lab_of(name=name, seeds=(0,), merging=("none", "r2"), distill=("soft",))


def wait_for(condition: Callable[[], bool]) -> None:
    """The server catches up by itself, as soon as the machine lets it."""
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "the record did not catch up"
        time.sleep(0.1)


def curve(lab: Any, server: MlflowServer, stage: TrainStage, key: str = "loss") -> list[tuple[int, float]]:
    run = runs(lab, server.database)[f"stage:{stage.digest}"]
    sql = f"select step, value from metrics where run_uuid='{run.info.run_id}' and key='{key}' order by step"
    return [(int(step), value) for step, value in query(server.database, sql)]


def expected(lab: Any, stage: TrainStage, key: str = "loss") -> list[tuple[int, float]]:
    return [(line["epoch"], line["values"][key]) for line in lab.history(stage)]


def recorded(lab: Any, server: MlflowServer, stage: TrainStage) -> bool:
    from mlflow import MlflowClient

    if MlflowClient(tracking_uri=server.database).get_experiment_by_name(lab.name) is None:
        return False
    found = runs(lab, server.database)
    return f"stage:{stage.digest}" in found and curve(lab, server, stage) == expected(lab, stage)


def test_down_at_the_start_and_then_up(small: Any, server: MlflowServer, capfd: pytest.CaptureFixture[str]) -> None:
    warnings: list[str] = []
    live = tracker(small, server.uri, warn=warnings.append)
    teacher = next(small.plan.walk())
    for event in events(small, [teacher]):
        live.on_event(event)
    wait_for(lambda: len(warnings) == 1)
    assert str(live.journal.folder) in warnings[0]
    assert "cannot be reached: connection refused" in warnings[0]
    server.up()
    wait_for(lambda: recorded(small, server, teacher))  # no new command, and nothing new in the run
    small.finish()
    for event in events(small)[len(events(small, [teacher])) :]:
        live.on_event(event)
    assert live.sync(small.plan, small.store)
    live.close()
    check_complete(small, server.database)
    assert live.journal.files() == [], "what is recorded is kept no longer"
    assert len(warnings) == 1
    assert capfd.readouterr() == ("", ""), "nobody else speaks"


def test_down_in_the_middle(small: Any, server: MlflowServer) -> None:
    server.up()
    small.finish()
    said = events(small)
    third = len(said) // 3
    live = tracker(small, server.uri, warn=lambda message: None)
    for i, event in enumerate(said):
        if i == third:
            wait_for(lambda: recorded(small, server, next(small.plan.walk())))
            server.down()
        if i == 2 * third:
            server.up()
        live.on_event(event)
    assert live.sync(small.plan, small.store)
    live.close()
    check_complete(small, server.database)


def test_down_at_the_end_and_recorded_by_the_next_run(small: Any, server: MlflowServer) -> None:
    """Points of unfinished stages, failures and ends are in no artefact: the journal alone has them."""
    teacher, student = (s for s in list(small.plan.walk())[:2] if isinstance(s, TrainStage))
    warnings: list[str] = []
    live = tracker(small, server.uri, warn=warnings.append)
    began = time.time()
    for stage in (teacher, student):
        live.on_event(StageStarted(stage.digest, 0, 1, 0.0))
        for line in small.history(stage):
            live.on_event(Progress(**line))
    live.on_event(StageFailed(student.digest, "the loss is NaN at step 31"))
    assert not live.sync(small.plan, small.store)
    live.close()
    over = time.time()

    server.up()
    later = tracker(small, server.uri)
    assert later.sync(small.plan, small.store)
    later.close()
    assert curve(small, server, teacher) == expected(small, teacher)
    assert curve(small, server, student, "val_top1") == expected(small, student, "val_top1")
    found = runs(small, server.database)
    assert found[f"stage:{teacher.digest}"].info.status == "KILLED"
    assert found[f"stage:{student.digest}"].info.status == "FAILED"
    assert found[f"stage:{student.digest}"].data.tags["slimvit.reason"] == "the loss is NaN at step 31"
    times = [t for (t,) in query(server.database, "select timestamp from metrics")]
    ours = [t / 1000 for t in times if began - 1 < t / 1000]
    assert max(ours) < over + 1, "points carry the time at which they were taken, not that of the replay"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_answers_that_are_lost(small: Any, server: MlflowServer, seed: int) -> None:
    """The server does what it was asked to and dies before it says so: asked again, it does nothing twice."""
    chance = random.Random(seed)
    server.cut = lambda method, path: method != "GET" and chance.random() < 0.2
    server.up()
    small.finish()
    live = tracker(small, server.uri, warn=lambda message: None, patience=Patience(0.01, 0.05, 200))
    for event in events(small):
        live.on_event(event)
        time.sleep(0.01)
    assert live.sync(small.plan, small.store)
    live.close()
    check_complete(small, server.database)


def test_every_created_run_is_lost_once(small: Any, server: MlflowServer) -> None:
    lost: set[int] = set()

    def cut(method: str, path: str) -> bool:
        if path.endswith("/runs/create") and len(lost) < 3:
            lost.add(server.served)
            return True
        return False

    server.cut = cut
    server.up()
    live = tracker(small, server.uri, warn=lambda message: None, patience=Patience(0.01, 0.05, 50))
    assert live.sync(small.plan, small.store)
    live.close()
    assert len(lost) == 1, "the run that was made is found; it is not made again"
    assert len(runs(small, server.database)) == 1


def test_two_runs_of_one_key_become_one(small: Any, server: MlflowServer) -> None:
    """A request that a slow server carries out after it was given up."""
    from mlflow import MlflowClient

    server.up()
    small.finish()
    first = tracker(small, server.uri)
    first.sync(small.plan, small.store)
    first.close()
    client = MlflowClient(tracking_uri=server.uri)
    original = runs(small, server.database)[f"experiment:{small.plan.experiment}"]
    tags = {k: v for k, v in original.data.tags.items() if k.startswith("slimvit.") and k != "slimvit.recorded"}
    client.create_run(original.info.experiment_id, tags=tags)
    second = tracker(small, server.uri)
    assert second.sync(small.plan, small.store)
    second.close()
    check_complete(small, server.database)
    assert runs(small, server.database)[f"experiment:{small.plan.experiment}"].info.run_id == original.info.run_id


def test_nobody_waits_for_a_server_that_hangs(small: Any) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # takes connections and never answers; MLflow waits 30 s
        live = tracker(small, f"http://127.0.0.1:{deaf.getsockname()[1]}", warn=lambda message: None)
        stage = next(small.plan.walk())
        live.on_event(StageStarted(stage.digest, 0, 1, 0.0))
        began = time.monotonic()
        for epoch in range(2000):
            live.on_event(Progress("epoch", stage.digest, epoch=epoch, values={"loss": 1.0}))
        assert time.monotonic() - began < 15
        assert len(live.journal.reader().read()) == 2001
        live._writer.close(timeout_s=0)


def test_two_processes_and_one_record(small: Any, server: MlflowServer) -> None:
    """One writes for both; when it ends, the other goes on."""
    server.up()
    small.finish()
    teacher, *others = small.plan.walk()
    one = tracker(small, server.uri)
    for event in events(small, [teacher]):
        one.on_event(event)
    wait_for(lambda: recorded(small, server, teacher))
    two = tracker(small, server.uri, warn=lambda message: None, patience=Patience(0.05, 0.2, 100))
    for event in events(small, others):
        two.on_event(event)
    student = next(s for s in others if isinstance(s, TrainStage))
    wait_for(lambda: recorded(small, server, student))
    one.close()
    assert two.sync(small.plan, small.store)
    two.close()
    check_complete(small, server.database)


@pytest.mark.long
def test_three_processes_in_a_fresh_database(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from conftest import Lab
        from orchestrator.reporting.tracker import Tracker
        lab = Lab(Path(sys.argv[2]), name=sys.argv[4], seeds=(0,), merging=("none",), distill=("soft",)).finish()
        tracker = Tracker(sys.argv[3], lab.name, lab.plan, lab.experiment, journals=lab.root / "journal")
        print(tracker.sync(lab.plan, lab.store))
        tracker.close()
    """
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(script),
                str(Path(__file__).parent),
                str(tmp_path / name),
                uri,
                name,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b", "c")
    ]
    for process in processes:
        said, complaints = process.communicate(timeout=280)
        assert (said, complaints) == ("True\n", "")
    kinds = query(uri, "select value, count(*) from tags where key='slimvit.kind' group by 1 order by 1")
    assert kinds == [("combination", 3), ("experiment", 3), ("stage", 9)]


def test_where_journals_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert journal_home(str(tmp_path / "store")) == tmp_path / "store" / ".journal"
    assert journal_home("s3://bucket/a").parent == tmp_path / "state" / "slimvit" / "journal"
    assert journal_home("s3://bucket/a") != journal_home("s3://bucket/b")
