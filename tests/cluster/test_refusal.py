"""What a person reads when a cluster does not take him in: from Ray's own errors, and from a real cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from cluster.refusal import refusal
from orchestrator.errors import ResourceError
from orchestrator.execution import jobs
from tests.execution.nodes import ENVIRONMENT, ROOT, nodes


def test_versions_that_differ() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "here")
    text = refusal("10.0.0.1:6379", caught.value, has_token=True)
    for words in ("`10.0.0.1:6379` runs Ray 2.9.0 and Python 3.9.1", f"Python {sys.version.split()[0]}", "ray[default"):
        assert words in text
    assert "\n" not in text


def test_anything_else_keeps_its_first_line() -> None:
    text = refusal("a:1", ConnectionError("no route\nlong story"), has_token=False)
    assert "no route. This machine must be one of its nodes" in text


@pytest.mark.parametrize(("token", "says"), [("wrong", "does not accept this user's token"), ("", "holds none")])
def test_a_job_and_a_run_are_told_the_same_about_a_token(
    token: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    error = AuthenticationError("WRONG_CLUSTER_ID")

    def ask() -> None:
        raise error

    with pytest.raises(ResourceError) as caught:
        jobs._asked("http://head:8265", ask)
    assert says in str(caught.value)
    assert str(caught.value) == refusal("http://head:8265", error, has_token=bool(token))


JOIN = """
import sys
from cluster.connect import ClusterUnreachable, connect
try:
    with connect(sys.argv[1]):
        print("joined")
except ClusterUnreachable as error:
    print("refused:", error)
"""


@pytest.mark.ray
@pytest.mark.parametrize(("token", "says"), [("wrong" * 12, "does not accept this user's token"), ("", "holds none")])
def test_a_token_that_is_wrong_or_missing(token: str, says: str, tmp_path: object) -> None:
    with nodes(1) as cluster:
        environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
        environment.pop("RAY_AUTH_MODE", None)
        if token:
            environment["RAY_AUTH_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-c", JOIN, cluster.address],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.stdout.startswith("refused:"), done.stdout + done.stderr
    assert says in done.stdout
    assert "Traceback" not in done.stdout
