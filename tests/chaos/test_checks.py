"""The harness itself: what it draws can be drawn again, and what it looks for it finds."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from cluster.local import LocalStore
from tests.chaos import checks
from tests.chaos.grid import Command, Said
from tests.chaos.injections import KINDS, Injection
from tests.chaos.saved import Saved, lost_to


def test_an_injection_follows_from_seed_and_number() -> None:
    drawn = [Injection.draw(7, number, KINDS) for number in range(100)]
    assert drawn == [Injection.draw(7, number, KINDS) for number in range(100)]
    assert drawn[42].chance().random() == Injection.draw(7, 42, KINDS).chance().random()
    assert {injection.kind for injection in drawn[: len(KINDS)]} == set(KINDS), "every kind, as often as any other"
    assert drawn != [Injection.draw(8, number, KINDS) for number in range(100)]


def test_a_log_is_read_as_people_read_it() -> None:
    command = Command(process=None)  # type: ignore[arg-type]
    command.lines = [
        (1.0, "Store   /somewhere"),
        (2.0, "[    0.1 s] teacher: started on lane 0"),
        (3.0, "[    0.2 s] student[distill=hot]: started again (attempt 2) on lane 1"),
        (4.0, "[    0.3 s] student[distill=hot]: goes on from step 30"),
        (5.0, "[    0.4 s] teacher: epoch 1/2, loss 2.1"),
        (6.0, "[    0.5 s] teacher: finished in 0.4 s (1/9)"),
    ]
    assert command.said() == [
        Said("teacher", "begun", 0, 2.0),
        Said("student[distill=hot]", "begun", 0, 3.0),
        Said("student[distill=hot]", "resumed", 30, 4.0),
        Said("teacher", "done", 0, 6.0),
    ]
    assert command.progress == 5


def test_work_that_is_done_twice_is_seen() -> None:
    said = [Said("a", "begun"), Said("a", "done"), Said("b", "begun"), Said("a", "begun"), Said("a", "done")]
    assert list(checks.check_once(said, ())) == [
        "`a` was finished 2 times",
        "`a` was begun again after it was finished",
    ]
    assert list(checks.check_once(said, ("a",))) == []
    assert list(checks.check_once([Said("a", "begun"), Said("a", "begun"), Said("a", "done")], ())) == []


def test_what_a_kill_cost(tmp_path: Path) -> None:
    digests = {"a": "da", "b": "db", "c": "dc"}
    said = [
        Said("a", "begun", at=10),
        Said("b", "begun", at=11),
        Said("c", "begun", at=12),
        Said("c", "done", at=13),
        Said("a", "begun", at=30),
        Said("a", "resumed", 20, at=31),
        Said("b", "begun", at=32),
        Said("b", "done", at=33),
    ]
    watch = Saved(LocalStore(tmp_path), tmp_path)
    watch._times["da"] = {10: 15.0, 20: 17.5, 30: 34.0}
    lost = lost_to(20.0, {"da": (20, 17.5)}, said, digests, watch)
    assert [(one.label, one.seconds, one.saved_step, one.resumed_step) for one in lost] == [
        ("a", 2.5, 20, 20),
        ("b", 9.0, 0, 0),
    ]
    assert lost[0].interval_s == 5.0, (
        "from its start to its first checkpoint; from 17.5 to its second start it lay dead"
    )


@pytest.mark.parametrize("wrong", ["other", "missing", "more"])
def test_weights_that_differ_are_seen(wrong: str) -> None:
    sound = {"a": "1", "b": "2"}
    found = {"other": {"a": "1", "b": "3"}, "missing": {"a": "1"}, "more": {**sound, "c": "4"}}[wrong]
    assert len(list(checks.check_weights(found, sound))) == 1
    assert list(checks.check_weights(dict(sound), sound)) == []


def test_a_record_with_a_point_twice_or_missing_is_seen(tmp_path: Path) -> None:
    store, artefact = LocalStore(tmp_path / "store"), tmp_path / "artefact"
    artefact.mkdir()
    (artefact / "history.jsonl").write_text(json.dumps({"epoch": 1, "values": {"loss": 0.5, "images_per_s": 3}}))
    store.commit("stages/abc", artefact)
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as made, made:
        made.execute("create table experiments (experiment_id, name)")
        made.execute("create table runs (run_uuid, experiment_id, status, lifecycle_stage)")
        made.execute("create table tags (run_uuid, key, value)")
        made.execute("create table metrics (run_uuid, key, step, value)")
        made.execute("insert into experiments values (1, 'e')")
        made.execute("insert into runs values ('r', 1, 'FINISHED', 'active'), ('q', 1, 'RUNNING', 'active')")
        made.execute("insert into tags values ('r', 'slimvit.kind', 'stage'), ('r', 'slimvit.key', 'abc')")
        made.execute("insert into tags values ('q', 'slimvit.kind', 'stage'), ('q', 'slimvit.key', 'abd')")
        made.execute("insert into metrics values ('r', 'loss', 1, 0.25), ('q', 'loss', 1, 1), ('q', 'loss', 1, 2)")
    found = "\n".join(checks.check_record(database, "e", store))
    assert "run `stage:abd` is RUNNING" in found
    assert "`loss` of `stage:abd` at step 1 2 times" in found
    assert "has 0.25 as `loss` of stage abc at epoch 1, not 0.5" in found
    assert "lacks `images_per_s` of stage abc at epoch 1" in found
    assert "other runs than the plan: {'stage': 2}" in found
