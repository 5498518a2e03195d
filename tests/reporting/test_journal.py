"""The journal through torn lines, full disks, killed processes and several writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.reporting.journal import Entry, Journal

ENTRIES = [
    Entry(1.25, "started", "a"),
    Entry(2.0, "epoch", "a", epoch=1, values={"loss": 0.1 + 0.2, "top 1 – ü": 1e-300}),
    Entry(3.0, "failed", "a", reason="line\nand\u2028more"),
    Entry(4.0, "finished", "b"),
]


def read(folder: Path) -> list[Entry]:
    return [replace(entry, source="") for entry in Journal(folder).reader().read()]


def write(folder: Path, entries: list[Entry] = ENTRIES) -> Path:
    journal = Journal(folder)
    for entry in entries:
        journal.append(entry)
    journal.close()
    (path,) = [p for p in journal.files() if p.name == journal.source]
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder")
    assert read(path.parent) == ENTRIES
    assert [json.loads(line)["seq"] for line in path.read_bytes().splitlines()] == [1, 2, 3, 4]


def test_torn_at_every_byte(tmp_path: Path) -> None:
    content = write(tmp_path / "whole").read_bytes()
    for size in range(len(content) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "old.jsonl").write_bytes(content[:size])
        assert read(folder) == ENTRIES[: content[:size].count(b"\n")]


def test_lines_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"loss", b"\xff\x00", 1)
    lines[2] = b'{"seq": 3, "at": 1.0, "kind": "unheard of", "stage": "a"}\n'
    path.write_bytes(b"".join(lines))
    reader = Journal(tmp_path).reader()
    assert [replace(e, source="") for e in reader.read()] == [ENTRIES[0], ENTRIES[3]]
    assert reader.damaged == 2


def test_a_reader_follows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    reader = journal.reader()
    assert reader.read() == []
    for entry in ENTRIES:
        journal.append(entry)
        assert [replace(e, source="") for e in reader.read()] == [entry]
    other = Journal(tmp_path)
    other.append(ENTRIES[0])
    assert [e.source for e in reader.read()] == [other.source]
    journal.close()
    other.close()


def test_a_killed_process_has_ended(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from orchestrator.reporting.journal import Entry, Journal
        Journal(Path(sys.argv[1])).append(Entry(5.0, "started", "a"))
        print("written", flush=True)
        time.sleep(60)
    """
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    reader = Journal(tmp_path).reader()
    assert [e.kind for e in reader.read()] == ["started"]
    assert reader.read() == [], "it lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [(e.kind, e.at) for e in reader.read()] == [("ended", 5.0)]
    assert reader.read() == []


def test_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append(ENTRIES[0])
    whole = os.write

    def full(handle: int, line: bytes) -> int:
        whole(handle, line[: len(line) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(ENTRIES[1])
    monkeypatch.setattr(os, "write", whole)
    journal.append(ENTRIES[3])
    journal.close()
    assert read(tmp_path) == [ENTRIES[0], ENTRIES[3]]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    one, two = Journal(tmp_path), Journal(tmp_path)
    with one.sole_writer(), pytest.raises(BlockingIOError, match="another process"), two.sole_writer():
        pytest.fail("two writers")
    with two.sole_writer():
        pass


def test_what_lives_is_not_discarded(tmp_path: Path) -> None:
    dead, alive, mine = Journal(tmp_path), Journal(tmp_path), Journal(tmp_path)
    for journal in (dead, alive, mine):
        journal.append(ENTRIES[0])
    dead.close()
    mine.discard()
    assert [path.name for path in mine.files()] == [alive.source]
    mine.append(ENTRIES[1])  # harmless, and of no interest to anybody
    for journal in (alive, mine):
        journal.close()
