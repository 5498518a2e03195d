"""What can be said of connecting without starting a cluster; `tests/execution` starts real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import connect, ship


def test_usable_cpus_are_within_the_machine() -> None:
    assert 1 <= connect.usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no Ray cluster answers"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
        ("head", "is no address"),
        ("ray://head:10001", "slimvit submit"),
        ("http://head:8265", "slimvit submit"),
    ],
)
def test_a_wrong_address_is_told_at_once(address: str, says: str) -> None:
    with pytest.raises(connect.ClusterUnreachable, match=says), connect.connect(address):
        pytest.fail("connected")


def test_folders_of_killed_runs_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "short_base", lambda: str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owners = {"old": f"{ended.pid}-old", "new": f"{ended.pid}-new", "alive": f"{os.getpid()}-x", "strange": "x-x"}
    folders = {name: tmp_path / f"slimvit-ray-{owner}" for name, owner in owners.items()}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "new":
            os.utime(folder, (0, 0))
    connect._sweep()
    assert [name for name, folder in folders.items() if folder.exists()] == ["new", "alive", "strange"]


def test_a_bundle_is_all_that_another_machine_needs(tmp_path: Path) -> None:
    """Imported from a zip's contents alone, with neither checkout nor installation in sight, strategies are found."""
    folder = ship.bundle(tmp_path / "code")
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".dist-info") == sorted(ship.PACKAGES)
    assert not list(folder.rglob("__pycache__"))
    assert (folder / "specs" / "library" / "quickstart.yaml").is_file()
    code = (
        "import specs, orchestrator.execution.lane, strategies.registry as r\n"
        f"assert specs.__file__.startswith({str(folder)!r}), specs.__file__\n"
        "print(len(r.names()))"
    )
    found = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
    assert int(found) >= 6
    with zipfile.ZipFile(tmp_path / "code.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    assert (tmp_path / "code.zip").stat().st_size < 5 * 2**20, "small enough to send with every job"
