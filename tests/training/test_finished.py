"""Whoever reads a finished stage says so when it is damaged: which file, and what to delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.errors import StoreError
from orchestrator.measurement.stage import run_measure_stage
from orchestrator.training.finished import fetched, result_of
from orchestrator.training.interface import StageIO, WorkerContext
from orchestrator.training.settle import settle
from orchestrator.training.stage import run_train_stage
from orchestrator.training.store_stage import run_store_stage

NAME = "stages/abc"


def committed(store: LocalStore, folder: Path, seconds: float = 1.0) -> Path:
    """A finished stage in the store; its folder there."""
    folder.mkdir()
    assert settle(store, NAME, folder, {"seconds": seconds})
    return store.fetch(NAME)


def read_by_settle(store: LocalStore, scratch: Path) -> Any:
    """Another run of the same spec finishes after the first, and looks at what that one left."""
    return committed(store, scratch / "second", seconds=2.0)


def read_by(runner: Callable[..., Any]) -> Callable[[LocalStore, Path], Any]:
    """A stage that is there already is not computed again: nothing but its digest is looked at."""

    def read(store: LocalStore, scratch: Path) -> Any:
        return runner(SimpleNamespace(digest="abc", label="abc"), WorkerContext(), StageIO(store, scratch))

    return read


@pytest.mark.parametrize(
    "read",
    [read_by(run_train_stage), read_by(run_store_stage), read_by(run_measure_stage), read_by_settle],
    ids=["train", "store", "measure", "settle"],
)
def test_a_damaged_stage_is_an_error_with_a_way_out(
    read: Callable[[LocalStore, Path], Any], store: LocalStore, tmp_path: Path
) -> None:
    file = committed(store, tmp_path / "first") / "result.json"
    file.chmod(0o644)
    file.write_text('{"seconds": 3.0}', encoding="utf-8")
    with pytest.raises(StoreError, match=rf"`{NAME}` is damaged: `.*result.json` .*Delete the folder"):
        read(store, tmp_path)


def test_what_is_sound_is_handed_out(store: LocalStore, tmp_path: Path) -> None:
    folder = committed(store, tmp_path / "first")
    assert fetched(store, NAME) == folder
    assert result_of(store, NAME) == {"seconds": 1.0}
    assert read_by_settle(store, tmp_path) == folder


def test_what_is_missing_is_said(store: LocalStore) -> None:
    with pytest.raises(StoreError, match=NAME):
        fetched(store, NAME)
