"""What a run clears away before it goes on from earlier ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.leases import Leases
from cluster.local import LocalStore
from orchestrator.keeping.tidy import discard_damaged, forget_leases
from orchestrator.planning.status import finished, to_run
from tests.execution.plans import digest, plan, train


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "store")
    for label in ("teacher", "sound", "flipped", "cut", "bare"):
        folder = tmp_path / label
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights of " + label.encode())
        made.commit(f"stages/{digest(label)}", folder)
    return made


def test_what_is_damaged_is_computed_anew_and_nothing_else(store: LocalStore) -> None:
    whole = plan(
        train("teacher"), *(train(label, "teacher") for label in ("sound", "flipped", "cut", "bare", "missing"))
    )
    file = {label: Path(store.place(f"stages/{digest(label)}")) / "model.safetensors" for label in ("flipped", "cut")}
    file["flipped"].write_bytes(b"weights of flippfd")
    file["cut"].write_bytes(b"weights")
    (Path(store.place(f"stages/{digest('bare')}")) / "COMMIT.json").write_text("{")
    found = discard_damaged(whole, store, finished(whole, store))
    assert found.keys() == {digest("flipped"), digest("cut"), digest("bare")}
    assert "SHA-256" in found[digest("flipped")]
    assert "has 7 bytes instead of 14" in found[digest("cut")]
    assert to_run(whole, finished(whole, store)) == {digest(label) for label in ("flipped", "cut", "bare", "missing")}
    assert discard_damaged(whole, store, finished(whole, store)) == {}


def test_a_lease_on_what_is_finished_is_nobodys(store: LocalStore) -> None:
    whole = plan(train("sound"), train("missing"))
    leases = Leases(store.register(), lambda name: False)  # killed between the commit and giving it back
    for label in ("sound", "missing", "of another plan"):
        assert leases.take(f"stages/{digest(label)}") == "taken"
    forget_leases(whole, store, finished(whole, store))
    left = {f"stages/{digest(label)}" for label in ("missing", "of another plan")}
    assert set(store.register().names()) == left
    leases.close()
