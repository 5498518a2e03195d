"""The token of clusters that slimvit starts: made once, and readable by its owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.token import show_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_made_once_for_its_owner(home: Path) -> None:
    show_token(starting=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    file = home / ".ray" / "auth_token"
    made = file.read_text()
    assert len(made) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    show_token(starting=True)
    assert file.read_text() == made


def test_one_that_others_can_read_is_closed(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("a" * 64)
    file.chmod(0o644)
    show_token(starting=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "a" * 64


def test_none_is_made_without_need(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    show_token(starting=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not (home / ".ray").exists()
