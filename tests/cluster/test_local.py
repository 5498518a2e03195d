"""The store on a folder: whole or not at all, and never silently wrong."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from cluster.local import LocalStore
from cluster.storage import MARKER, ArtifactStore


def folder(base: Path, **files: str) -> Path:
    base.mkdir()
    for name, text in files.items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return base


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_is_an_artifact_store(store: LocalStore) -> None:
    typed: ArtifactStore = store
    assert not typed.committed("stages/a")


def test_commit_then_fetch(store: LocalStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "out", weights="w" * 3_000_000, sub__log="epoch")
    store.commit("stages/a", source)
    assert store.committed("stages/a")
    assert not source.exists(), "a commit moves"
    found = store.fetch("stages/a")
    assert (found / "weights").read_text() == "w" * 3_000_000
    assert (found / "sub" / "log").read_text() == "epoch"
    marker = json.loads((found / MARKER).read_text())
    assert marker["files"]["sub/log"]["size"] == 5


def test_commit_across_file_systems(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    store = LocalStore(tmp_path / "store")
    source = folder(shared_memory / f"slimvit-test-{os.getpid()}", weights="w")
    store.commit("stages/a", source)
    assert (store.fetch("stages/a") / "weights").read_text() == "w"
    assert not source.exists()


def test_same_content_twice_is_fine_and_other_content_is_refused(store: LocalStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "one", weights="w"))
    store.commit("stages/a", folder(tmp_path / "two", weights="w"))
    with pytest.raises(FileExistsError, match="other content"):
        store.commit("stages/a", folder(tmp_path / "three", weights="v"))
    assert (store.fetch("stages/a") / "weights").read_text() == "w"


def test_without_marker_it_does_not_exist_and_is_overwritten(store: LocalStore, tmp_path: Path) -> None:
    partial = store.root / "stages" / "a"
    partial.mkdir(parents=True)
    (partial / "weights").write_text("half")
    (partial / "stray").write_text("left over")
    assert not store.committed("stages/a")
    assert list(store.names("stages")) == []
    with pytest.raises(FileNotFoundError, match="stages/a"):
        store.fetch("stages/a")
    store.commit("stages/a", folder(tmp_path / "out", weights="whole"))
    assert (store.fetch("stages/a") / "weights").read_text() == "whole"
    assert not (partial / "stray").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "9 bytes instead of 10"),
        (lambda path: path.write_bytes(b"0123456788"), "SHA-256"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["truncated", "bit flip", "missing"],
)
def test_damage_is_named(store: LocalStore, tmp_path: Path, damage, reason: str) -> None:
    store.commit("stages/a", folder(tmp_path / "out", weights="0123456789", other="x"))
    damage(store.root / "stages" / "a" / "weights")
    with pytest.raises(ValueError, match=reason) as caught:
        store.fetch("stages/a")
    assert "weights" in str(caught.value)
    assert "Delete" in str(caught.value)


def test_a_damaged_marker_is_named(store: LocalStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "out", weights="w"))
    (store.root / "stages" / "a" / MARKER).write_text('{"format"')
    with pytest.raises(ValueError, match="marker"):
        store.fetch("stages/a")


def test_names_and_delete(store: LocalStore, tmp_path: Path) -> None:
    for i, name in enumerate(["progress/ab/2", "progress/ab/1", "progress/abc/1", "stages/x"]):
        store.commit(name, folder(tmp_path / str(i), state=name))
    assert list(store.names("progress/ab")) == ["progress/ab/1", "progress/ab/2"]
    assert list(store.names("progress/")) == ["progress/ab/1", "progress/ab/2", "progress/abc/1"]
    assert list(store.names("")) == ["progress/ab/1", "progress/ab/2", "progress/abc/1", "stages/x"]
    assert list(store.names("nothing")) == []
    store.delete("progress/ab/1")
    store.delete("progress/ab/1")
    assert list(store.names("progress/ab")) == ["progress/ab/2"]


@pytest.mark.parametrize("name", ["", "../out", "stages/../../out", "/"])
def test_names_cannot_leave_the_root(store: LocalStore, name: str) -> None:
    with pytest.raises(ValueError, match="no artefact name"):
        store.committed(name)


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OSError, match=r"store.*cannot be written.*storage\.root"):
        LocalStore(blocker / "store").prepare()
    with pytest.raises(OSError, match=r"storage\.root"):
        LocalStore(blocker / "store").commit("stages/a", folder(tmp_path / "out", weights="w"))


def test_rivals_commit_the_same_name(store: LocalStore, tmp_path: Path) -> None:
    sources = [folder(tmp_path / str(i), weights="same") for i in range(8)]
    errors: list[BaseException] = []

    def commit(source: Path) -> None:
        try:
            store.commit("stages/a", source)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (store.fetch("stages/a") / "weights").read_text() == "same"
    assert [p.name for p in (store.root / "stages").iterdir()] == ["a"], "nothing temporary is left"


def test_what_killed_writers_left_is_swept(store: LocalStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "one", weights="w"))
    old, young = (store.root / "stages" / f".incoming-b-{age}" for age in ("old", "young"))
    scratch = Path(store.scratch())
    for path in (old, young):
        path.mkdir()
    for path in (old, scratch):
        os.utime(path, (0, 0))
    store.commit("stages/b", folder(tmp_path / "two", weights="w"))
    assert not old.exists()
    assert young.exists(), "somebody may be writing it at this moment"
    assert scratch.exists(), "a run may be using it"
