"""What a node's cache throws out when room is needed, whatever happens to the date meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster import cache as module
from cluster.cache import LIMIT_VARIABLE, Cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Room for 1,000 bytes, 800 of which two artefacts take."""
    monkeypatch.setenv(LIMIT_VARIABLE, str(1000 / 1e9))
    made = Cache(tmp_path)
    for key in ("store stages/a", "store stages/b"):
        (made.folder(key) / "weights").write_bytes(bytes(400))
    return made


def left(cache: Cache) -> set[str]:
    return {path.parent.name for path in cache._root.glob("*/*/weights")}


def later(monkeypatch: pytest.MonkeyPatch, clock: str, seconds: float) -> None:
    true = getattr(time, clock)
    monkeypatch.setattr(module.time, clock, lambda: true() + seconds)


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_what_is_in_use_stays_when_the_date_jumps(cache: Cache, monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    for folder in cache._root.glob("*/*"):  # as seen by a clock that was set since
        os.utime(folder, (time.time() - jump_s,) * 2)
    later(monkeypatch, "time", jump_s)
    cache.make_room(500)
    assert left(cache) == {"a", "b"}


def test_what_was_used_longest_ago_goes_first(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, "monotonic", 2 * 3600)
    cache.folder("store stages/a")
    cache.make_room(500)
    assert left(cache) == {"a"}
    cache.make_room(900)
    assert left(cache) == {"a"}, "just used"
    later(monkeypatch, "monotonic", 2 * 3600)
    cache.make_room(900)
    assert left(cache) == set()


def test_what_was_used_before_the_machine_was_started_is_not_in_use(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_boot", lambda: "another")
    cache.folder("store stages/b")
    cache.make_room(500)
    assert left(cache) == {"b"}
