"""Leases: one holder at a time, lost only by those who do not renew, whatever the clocks say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.lease import Entry, Record, judge
from cluster.leases import Elsewhere, Leases
from cluster.process import Process
from cluster.storage import ArtifactStore
from tests.cluster.s3_process import ROOT

ELSEWHERE = Process("far", "another machine", 1, 1)
NAME = "stages/a"


def entry(age_s: float = 0.0, holder: str = "other", **changes: object) -> Entry:
    record = Record(holder, ELSEWHERE, 0.0, 1, **changes)  # type: ignore[arg-type]
    return Entry(record, "v", age_s)


@pytest.mark.parametrize(
    ("found", "watched_s", "gone", "verdict"),
    [
        (None, 0.0, False, "free"),
        (entry(released=True), 0.0, False, "free"),
        (entry(holder="me"), 0.0, False, "mine"),
        (entry(), 0.0, False, "held"),
        (entry(), 59.0, False, "held"),
        (entry(), 60.0, False, "expired"),
        (entry(age_s=3600.0), 0.0, False, "held"),  # the store's clock may have jumped
        (entry(age_s=3600.0), 25.0, False, "expired"),
        (entry(age_s=0.0), 25.0, False, "held"),
        (entry(), 0.0, True, "expired"),
        (Entry(None, "v", 0.0), 0.0, False, "held"),  # half written
        (Entry(None, "v", 0.0), 60.0, False, "expired"),
    ],
)
def test_when_a_lease_can_be_had(found: Entry | None, watched_s: float, gone: bool, verdict: str) -> None:
    assert judge(found, "me", watched_s=watched_s, holder_gone=gone) == verdict


def test_a_record_survives_its_text() -> None:
    record = Record("me", Process.this(), 1.5, 7, beat=3)
    assert Record.decode(record.encode()) == record
    assert Record.decode(record.encode()[:-9]) is None


def test_a_process_that_ended_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    text = Path(f"/proc/{child.pid}/stat").read_text()
    alive = Process("here", Process.this().machine, child.pid, int(text.rpartition(")")[2].split()[19]))
    assert not alive.gone()
    child.kill()
    while not alive.gone():  # also before its parent asked for its end
        time.sleep(0.01)
    child.wait()
    assert alive.gone()
    assert not Process("far", "another machine", child.pid, alive.started).gone(), "nothing is known of other machines"
    here = Process.this()
    assert Process("here", here.machine, here.pid, here.started + 1).gone(), "the number was given to another process"


def test_versions_are_written_once(store: ArtifactStore) -> None:
    register = store.register()
    assert register.read(NAME) is None
    first = register.write(NAME, Record("one", ELSEWHERE, 0.0, 1), None)
    assert first is not None
    assert register.write(NAME, Record("two", ELSEWHERE, 0.0, 1), None) is None
    second = register.write(NAME, Record("one", ELSEWHERE, 0.0, 1, beat=1), first)
    assert second is not None
    assert register.write(NAME, Record("two", ELSEWHERE, 0.0, 2), first) is None, "it was renewed in between"
    found = register.read(NAME)
    assert found is not None
    assert found.record == Record("one", ELSEWHERE, 0.0, 1, beat=1)
    assert found.version == second
    assert 0 <= found.age_s < 30
    assert register.names() == [NAME]
    register.remove(NAME)
    register.remove(NAME)
    assert register.read(NAME) is None
    assert register.write(NAME, Record("two", ELSEWHERE, 0.0, 2), second) is None or register.read(NAME) is not None


def leases(store: ArtifactStore, finished: set[str] | None = None, **options: float) -> Leases:
    times = {"ttl_s": 1.0, "beat_s": 0.2, "watch_s": 0.1} | options
    done = finished if finished is not None else set()
    return Leases(store.register(), done.__contains__, process=ELSEWHERE, **times)


def wait_for(known: Leases, name: str, kind: str) -> None:
    until = time.monotonic() + 60
    while (name, kind) not in known.changes():
        assert time.monotonic() < until, f"{name} never became {kind}"
        time.sleep(0.02)


def test_of_what_is_finished_no_lease_is_left(store: ArtifactStore) -> None:
    """A worker whose node was given up may finish after its lease was let go."""
    finished: set[str] = set()
    one = leases(store, finished)
    assert one.take(NAME) == "taken"
    one.give_back(NAME, finished=False)
    assert store.register().names() == [NAME]
    finished.add(NAME)
    assert one.take(NAME) == "finished"
    assert store.register().names() == []
    one.close()


def test_one_holder_at_a_time(store: ArtifactStore) -> None:
    one, two = leases(store, ttl_s=30.0), leases(store, ttl_s=30.0)
    assert one.take(NAME) == one.take(NAME) == "taken"
    answer = two.take(NAME)
    assert isinstance(answer, Elsewhere)
    assert answer.host == "far"
    time.sleep(1.0)
    assert two.changes() == [], "it is renewed"
    one.give_back(NAME, finished=False)
    wait_for(two, NAME, "free")
    assert two.take(NAME) == "taken"
    one.close()
    two.close()
    assert two.held() == frozenset()


def test_what_is_finished_is_not_taken(store: ArtifactStore) -> None:
    finished: set[str] = set()
    one, two = leases(store, finished, ttl_s=30.0), leases(store, finished, ttl_s=30.0)
    one.take(NAME)
    two.take(NAME)
    finished.add(NAME)
    one.give_back(NAME, finished=True)
    wait_for(two, NAME, "finished")
    assert two.take(NAME) == "finished"
    assert store.register().names() == [], "nothing is left behind"
    one.close()
    two.close()


def test_a_silent_holder_loses_its_lease_and_notices(store: ArtifactStore) -> None:
    silent = leases(store, ttl_s=2.0, beat_s=1000.0, watch_s=1000.0)  # as if its process had been stopped
    assert silent.take(NAME) == "taken"
    other = leases(store, ttl_s=2.0, beat_s=0.2)
    assert isinstance(other.take(NAME), Elsewhere)
    wait_for(other, NAME, "free")
    assert other.take(NAME) == "taken"
    found = store.register().read(NAME)
    assert found is not None
    assert found.record is not None
    assert found.record.token == 2, "the token grew"
    silent._renew(NAME)
    assert silent.changes() == [(NAME, "lost")]
    silent.close()
    assert store.register().read(NAME) is not None, "it did not take the other's lease with it"
    other.close()


RACER = """
import sys, json
from cluster.leases import Leases
from tests.cluster.test_lease import opened
store = opened(sys.argv[1])
names = [f"stages/{i}" for i in range(int(sys.argv[2]))]
leases = Leases(store.register(), lambda name: False)
print("ready", flush=True); input()
print(json.dumps([name for name in names if leases.take(name) == "taken"]), flush=True)
input()
leases.close()
"""


def opened(location: str) -> ArtifactStore:
    from orchestrator.storage import open_store

    return open_store(location)


def test_processes_that_race_share_without_overlap(store: ArtifactStore) -> None:
    number, racers = 20, 3
    store.prepare()
    command = [sys.executable, "-c", RACER, store.location, str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(racers)
    ]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    def go(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    assert [line(process) for process in running] == ["ready\n"] * racers
    for process in running:
        go(process)
    taken = [json.loads(line(process)) for process in running]
    assert sorted(name for names in taken for name in names) == sorted(f"stages/{i}" for i in range(number))
    # One is killed: on this machine that is known at once. The others give back what they hold.
    running[0].kill()
    running[0].wait()
    after = Leases(store.register(), lambda name: False)
    for name in taken[0]:
        assert after.take(name) == "taken"
    for process in running[1:]:
        go(process)
        assert process.wait(60) == 0
    for name in taken[1] + taken[2]:
        assert after.take(name) == "taken"
    after.close()
