"""A cluster that slimvit starts: it wants a token from everybody, and its dashboard listens on this machine alone."""

from __future__ import annotations

import os
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.execution.head import head


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a user who has never started a cluster."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    """Address of the dashboard of a fresh cluster; nothing in the environment says that it should want a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with head(1, environment | {"HOME": str(home)}) as addresses:
        yield addresses["dashboard"]


def status(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.ray
def test_the_cluster_wants_a_token(dashboard: str, home: Path) -> None:
    file = home / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, "nobody else reads it"
    token = file.read_text().strip()
    assert len(token) >= 32
    jobs = f"{dashboard}/api/jobs/"
    assert status(jobs, None) == 401
    assert status(jobs, "0" * 64) == 403
    assert status(jobs, token) == 200


@pytest.mark.ray
def test_the_dashboard_is_on_loopback(dashboard: str) -> None:
    port = urlsplit(dashboard).port
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}
