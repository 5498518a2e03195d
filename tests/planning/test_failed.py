"""Notes of failures in a real store."""

from __future__ import annotations

from pathlib import Path

from cluster.local import LocalStore
from orchestrator.planning.failed import FailureNotes, reasons
from tests.execution.plans import digest, plan, train

PLAN = plan(train("a"), train("b"))


def test_a_note_lives_until_the_stage_is_at_work_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert reasons(PLAN, store) == {}
    notes = FailureNotes(store)
    notes.put(digest("a"), "a", "no images")
    notes.put(digest("a"), "a", "no room")
    notes.put(digest("b"), "b", "a crash")
    assert reasons(PLAN, store) == {digest("a"): "no room", digest("b"): "a crash"}
    assert reasons(plan(train("b")), store) == {digest("b"): "a crash"}
    assert list(store.names("stages")) == []

    later = FailureNotes(store)
    later.drop(digest("a"))
    assert reasons(PLAN, store) == {digest("b"): "a crash"}


def test_a_damaged_note_is_none(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    FailureNotes(store).put(digest("a"), "a", "no images")
    (tmp_path / "failures" / digest("a") / "failure.json").write_text("{")
    assert reasons(PLAN, store) == {}


def test_a_full_store_costs_only_the_note(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    notes = FailureNotes(store)
    (tmp_path / "store").write_text("in the way")
    notes.put(digest("a"), "a", "no images")
