"""`slimvit gc` and `slimvit store` through the command: messages, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local import LocalStore
from orchestrator import cli
from orchestrator.exits import ending
from tests.cluster.s3_process import CREDENTIALS
from tests.cluster.test_store import folder


def slimvit(*arguments: str) -> int:
    return ending(lambda: cli.app(list(arguments), prog_name="slimvit", standalone_mode=False))


def test_verify_and_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path / "store")
    store.commit("stages/a", folder(tmp_path / "out", weights="w"))
    (store.root / "stages" / "a" / "weights").write_text("v")
    assert slimvit("store", "verify", "--store", store.location) == 1
    assert "slimvit store delete stages/a" in capsys.readouterr().err
    assert slimvit("store", "delete", "stages/a", "--store", store.location) == 0
    assert slimvit("store", "verify", "--store", store.location) == 0
    assert capsys.readouterr().out.endswith(
        "Nothing was ever kept here. If there should be something, name the store's place with `--store`.\n"
    )
    assert slimvit("store", "delete", "../a", "--store", store.location) == 2


def test_gc_and_ls_of_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "none")
    assert slimvit("gc", "--store", place) == 0
    assert "Nothing was ever kept here." in capsys.readouterr().out
    assert slimvit("store", "ls", "--store", place) == 0
    assert "Nothing was ever kept here." in capsys.readouterr().out
    assert not Path(place).exists(), "looking makes nothing"
    (tmp_path / "file").write_text("")
    assert slimvit("store", "ls", "--store", str(tmp_path / "file")) == 4
    assert "is a file" in capsys.readouterr().err


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (CREDENTIALS | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    for command in (["gc"], ["store", "ls"], ["compare", "lab"]):
        assert slimvit(*command, "--store", "s3://some-bucket/x?endpoint=http://127.0.0.1:1") == 4
        assert "does not answer" in capsys.readouterr().err
    assert slimvit("store", "ls", "--store", "s3://key:topsecret@bucket") == 4
    assert "topsecret" not in capsys.readouterr().err
