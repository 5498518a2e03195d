"""What every store promises, for each kind of store: whole or not at all, and never silently wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import threading
import time
from pathlib import Path

import pytest

from cluster.local import LocalStore
from cluster.storage import ArtifactStore


def folder(base: Path, **files: str | bytes) -> Path:
    base.mkdir()
    for name, content in files.items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return base


def test_what_goes_in_comes_out(store: ArtifactStore, tmp_path: Path) -> None:
    store.check()
    store.prepare()
    weights = random.Random(0).randbytes(40_000_000)  # several parts
    store.commit("stages/a", folder(tmp_path / "out", weights=weights, sub__log="epoch", empty=""))
    assert not (tmp_path / "out").exists(), "a commit moves"
    elsewhere: ArtifactStore = pickle.loads(pickle.dumps(store))
    assert elsewhere.committed("stages/a")
    found = elsewhere.fetch("stages/a")
    assert hashlib.sha256((found / "weights").read_bytes()).digest() == hashlib.sha256(weights).digest()
    assert (found / "sub" / "log").read_text() == "epoch"
    assert (found / "empty").read_bytes() == b""
    assert found.name == "a", "messages name the artefact by its folder"


def test_some_files(store: ArtifactStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "out", weights="w", result="r"))
    found = store.fetch("stages/a", ["result", "not there"])
    assert (found / "result").read_text() == "r"
    with pytest.raises(FileNotFoundError, match="no artefact `stages/b`"):
        store.fetch("stages/b")


def test_same_content_twice_is_fine_and_other_content_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "one", weights="w"))
    store.commit("stages/a", folder(tmp_path / "two", weights="w"))
    with pytest.raises(FileExistsError, match="other content"):
        store.commit("stages/a", folder(tmp_path / "three", weights="v"))
    assert (store.fetch("stages/a") / "weights").read_text() == "w"


def test_the_content_is_known_by_its_digest(store: ArtifactStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "one", weights="w", result="r"))
    store.commit("stages/b", folder(tmp_path / "two", result="r", weights="w"))
    first = store.content("stages/a")
    assert first == store.content("stages/b")
    store.delete("stages/a")
    with pytest.raises(FileNotFoundError, match="no artefact `stages/a`"):
        store.content("stages/a")
    store.commit("stages/a", folder(tmp_path / "three", weights="w", result="other"))
    assert store.content("stages/a") != first


def test_names_presence_and_delete(store: ArtifactStore, tmp_path: Path) -> None:
    names = ["progress/ab/1", "progress/ab/2", "progress/abc/1", "stages/x"]
    for i, name in enumerate(reversed(names)):
        store.commit(name, folder(tmp_path / str(i), state=name))
    assert list(store.names("progress/ab")) == names[:2]
    assert list(store.names("progress/")) == names[:3]
    assert list(store.names("")) == names
    assert list(store.names("nothing")) == []
    assert store.present(["stages/x", "stages/y"]) == {"stages/x"}
    assert store.present([*names, *(f"stages/{i}" for i in range(50))]) == set(names)
    store.delete("progress/ab/1")
    store.delete("progress/ab/1")
    assert list(store.names("progress/ab")) == ["progress/ab/2"]
    assert not store.committed("progress/ab/1")
    store.commit("progress/ab/1", folder(tmp_path / "again", state="other"))
    assert (store.fetch("progress/ab/1") / "state").read_text() == "other", "nothing of the old one is left anywhere"


@pytest.mark.parametrize("name", ["", "../out", "stages/../../out", "/", ".leases/x"])
def test_names_cannot_leave_the_store(store: ArtifactStore, name: str) -> None:
    for ask in (store.committed, store.fetch, store.delete):
        with pytest.raises(ValueError, match="no artefact name"):
            ask(name)


def test_rivals_with_the_same_and_with_other_content(store: ArtifactStore, tmp_path: Path) -> None:
    contents = ["same"] * 4 + ["other"] * 4
    sources = [folder(tmp_path / str(i), weights=text * 1000, number=text) for i, text in enumerate(contents)]
    refused: list[str] = []
    errors: list[BaseException] = []

    def commit(source: Path, text: str) -> None:
        try:
            store.commit("stages/a", source)
        except FileExistsError:
            refused.append(text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=pair) for pair in zip(sources, contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = store.fetch("stages/a")
    winner = (found / "number").read_text()
    assert (found / "weights").read_text() == winner * 1000, "never files of two commits"
    assert refused == [{"same": "other", "other": "same"}[winner]] * 4
    inventory = store.inventory()
    assert [kept.name for kept in inventory.artefacts] == ["stages/a"]
    assert inventory.leftovers == (), "the losers cleared up"


def test_inventory(store: ArtifactStore, tmp_path: Path) -> None:
    store.commit("stages/a", folder(tmp_path / "one", weights=b"w" * 1000, sub__log=b"l" * 10))
    store.commit("progress/a/1", folder(tmp_path / "two", state=b"s" * 100))
    began = time.monotonic()
    sizes = {kept.name: kept.size for kept in store.inventory().artefacts}
    assert list(sizes) == ["progress/a/1", "stages/a"]
    assert 1010 < sizes["stages/a"] < 2000, "its marker counts too"
    assert all(0 <= kept.age_s < 60 + time.monotonic() - began for kept in store.inventory().artefacts)


def test_scratch_is_no_artefact(store: ArtifactStore) -> None:
    store.prepare()
    place = store.scratch()
    if isinstance(store, LocalStore):
        assert os.listdir(place) == []
    assert list(store.names("")) == []
    store.discard(place)
    assert store.inventory().leftovers == ()
