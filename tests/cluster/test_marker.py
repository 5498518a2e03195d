"""Digests of files by parts, and stores that were written before there were parts."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from cluster import marker
from cluster.local import LocalStore
from cluster.s3_client import PART_BYTES
from cluster.s3_transfer import download, upload
from cluster.storage import MARKER
from specs.address import Address
from tests.cluster.test_store import folder

PART = 10_000


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marker, "PART_BYTES", PART)


def by_hand(content: bytes, part: int = PART) -> str:
    parts = [hashlib.sha256(content[i : i + part]).digest() for i in range(0, max(len(content), 1), part)]
    return parts[0].hex() if len(parts) == 1 else f"{hashlib.sha256(b''.join(parts)).hexdigest()}-{len(parts)}"


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 7 * PART + 123])
def test_the_digest_of_a_file(size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    known = {"size": size, "sha256": by_hand(content)}
    assert marker.contents_of(tmp_path) == {"file": known}
    assert marker.size_and_sha256(str(tmp_path / "file")) == (size, known["sha256"])
    assert marker.difference(str(tmp_path / "file"), known) is None
    whole = {"size": size, "sha256": hashlib.sha256(content).hexdigest()}
    assert marker.difference(str(tmp_path / "file"), whole) is None


@pytest.mark.usefixtures("small_parts")
def test_a_bit_in_any_part_and_parts_in_another_order_are_seen(tmp_path: Path) -> None:
    content, path = random.Random(0).randbytes(3 * PART + 1), tmp_path / "file"
    known = {"size": len(content), "sha256": by_hand(content)}
    for at in (0, PART, 2 * PART - 1, 3 * PART):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert "has SHA-256" in str(marker.difference(str(path), known))
    path.write_bytes(content[PART : 2 * PART] + content[:PART] + content[2 * PART :])
    assert "has SHA-256" in str(marker.difference(str(path), known))
    path.write_bytes(content[:-1])
    assert marker.difference(str(path), known) == f"has {3 * PART} bytes instead of {3 * PART + 1}"
    path.unlink()
    assert marker.difference(str(path), known) == "is missing"


@pytest.mark.usefixtures("small_parts")
def test_a_store_with_digests_of_whole_files(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(3 * PART)
    store = LocalStore(tmp_path / "store")
    store.commit("stages/a", folder(tmp_path / "one", weights=content))
    file = store.root / "stages" / "a" / MARKER
    assert json.loads(file.read_text())["files"]["weights"]["sha256"].endswith("-3")
    old = {"weights": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
    file.write_text(json.dumps({"format": 1, "files": old}))
    assert (store.fetch("stages/a") / "weights").read_bytes() == content
    store.commit("stages/a", folder(tmp_path / "two", weights=content))
    with pytest.raises(FileExistsError, match="other content"):
        store.commit("stages/a", folder(tmp_path / "three", weights=content[::-1]))
    (store.root / "stages" / "a" / "weights").write_bytes(content[::-1])
    assert len(store.damage("stages/a")) == 1
    with pytest.raises(ValueError, match="has SHA-256"):
        store.fetch("stages/a")


def test_digests_of_both_forms_from_a_bucket(tmp_path: Path, address: Address) -> None:
    content, part = random.Random(0).randbytes(17 << 20), 16 << 20
    sent = upload(address, folder(tmp_path / "out", weights=content), ["weights"])
    assert sent == {"weights": {"size": len(content), "sha256": by_hand(content, part)}}
    old = {"weights": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (tmp_path / "in").mkdir()
    for known in (sent, old):
        assert download(address, known, tmp_path / "in") == []
    other = {"weights": {"size": len(content), "sha256": by_hand(content[::-1], part)}}
    assert "has SHA-256" in download(address, other, tmp_path / "in")[0]


def test_a_file_of_many_parts_comes_back_from_a_bucket(tmp_path: Path, address: Address) -> None:
    """More than the ten that s3transfer holds in memory at once for a file that cannot `seek`."""
    content = random.Random(0).randbytes(12 * PART_BYTES + 1)
    sent = upload(address, folder(tmp_path / "out", weights=content), ["weights"])
    (tmp_path / "in").mkdir()
    assert download(address, sent, tmp_path / "in") == []
    assert (tmp_path / "in" / "weights").read_bytes() == content
