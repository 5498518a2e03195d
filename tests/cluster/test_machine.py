"""A cluster on this machine: started, looked at and ended, and nothing else is touched."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from cluster import machine, state
from cluster.view import look
from specs.cluster import LocalCluster


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def sleeper():
    """Start processes that only wait, with a word in their command line; end them afterwards."""
    started = []

    def start(word: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", word])
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def record(process: subprocess.Popen[bytes], folder: Path, created: float) -> machine.Machine:
    found = machine.Machine("m", "10.0.0.1:1", "http://127.0.0.1:2", str(folder), process.pid, created)
    state.remember("local", "m", asdict(found))
    return found


def test_only_processes_of_the_recorded_session_end(tmp_path, sleeper):
    folder = tmp_path / "slimvit-m-1"
    folder.mkdir()
    holder, worker = sleeper("holder"), sleeper(f"--temp-dir={folder}/x")
    stranger = sleeper(f"--temp-dir={tmp_path}/slimvit-other")
    found = record(holder, folder, psutil.Process(holder.pid).create_time())
    assert machine.running("m") == found
    assert machine.stop("m") == found
    holder.wait(60)
    worker.wait(60)
    assert stranger.poll() is None
    assert not folder.exists()
    assert state.recall("local", "m") is None


def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path, sleeper):
    folder = tmp_path / "slimvit-m-2"
    folder.mkdir()
    other = sleeper("other")
    record(other, folder, created=psutil.Process(other.pid).create_time() - 3600)
    assert machine.running("m") is None
    assert machine.stop("m") is None
    assert other.poll() is None


def test_what_is_remembered_is_for_this_user_only(tmp_path):
    file = state.remember("local", "m", {"a": 1})
    assert file.stat().st_mode & 0o777 == 0o600
    assert state.recall("local", "m") == {"a": 1}
    file.write_text("{")
    assert state.recall("local", "m") is None


def test_a_taken_dashboard_port_is_said_before_ray_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(machine.MachineError, match=rf"port {port} .* is taken.*dashboard_port"):
            machine.start("m", LocalCluster(kind="local", dashboard_port=port))


def test_stopping_what_was_never_started_is_fine():
    assert machine.stop("nothing") is None


@pytest.mark.ray
def test_a_cluster_outlives_its_starter_and_ends_whole(tmp_path):
    spec = LocalCluster(kind="local", cpus=1, gpus=0, dashboard_port=0)
    # In a process of its own, as the command is.
    program = (
        "from cluster import machine; from specs.cluster import LocalCluster; "
        "machine.start('lives', LocalCluster(kind='local', cpus=1, gpus=0, dashboard_port=0))"
    )
    try:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
        found = machine.running("lives")
        assert found is not None
        assert machine.start("lives", spec) == found, "a second start finds the first one"
        view = look(found.address)
        assert [node.resources for node in view.nodes] == [{"CPU": 1.0}]
        assert view.dashboard == found.dashboard
        assert view.dashboard.startswith("http://127.0.0.1:")
        assert view.jobs == ()
        commands = [process.cmdline() for process in machine._of_session(Path(found.folder))]
        assert any("raylet" in command[0] for command in commands)
    finally:
        machine.stop("lives")
    assert machine.running("lives") is None
    assert machine._of_session(Path(found.folder)) == []
