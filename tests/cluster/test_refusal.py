"""What a person reads when a cluster does not take him in: from Ray's own errors, and from a real cluster."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from cluster.refusal import refusal
from orchestrator.errors import ResourceError
from orchestrator.execution import jobs
from tests.execution.nodes import ENVIRONMENT, nodes


def test_versions_that_differ() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "here")
    text = refusal("10.0.0.1:6379", caught.value, has_token=True)
    for words in ("`10.0.0.1:6379` runs Ray 2.9.0 and Python 3.9.1", f"Python {sys.version.split()[0]}", "ray[default"):
        assert words in text
    assert "\n" not in text


def test_a_token_that_only_the_cause_tells_of() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at a:1")
    error.__cause__ = RuntimeError("Failed to connect to GCS. Last: Unauthenticated: InvalidAuthToken")
    assert "does not accept this user's token" in refusal("a:1", error, has_token=True)
    assert "holds none" in refusal("a:1", error, has_token=False)


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


SPEC = """
name: tiny
data: {kind: sample, limit_train: 64, limit_val: 60}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 24, depth: 1, num_heads: 2}}
stages: [{name: train, training: {epochs: 1}}]
"""
CLAIM = """
import json, sys
from ray._raylet import GcsClient
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
gcs = GcsClient(address=sys.argv[1])
known = json.loads(gcs.internal_kv_get(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER))
claimed = json.dumps(known | json.loads(sys.argv[2])).encode()
gcs.internal_kv_put(CLUSTER_METADATA_KEY, claimed, True, KV_NAMESPACE_CLUSTER)
print(json.dumps({key: known[key] for key in json.loads(sys.argv[2])}))
"""
"""What a cluster says of its versions lies in its own store, where the first process that joins has put it."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster that wants this user's token."""
    with nodes(1) as cluster:
        yield cluster.address


def claim(address: str, versions: dict[str, str]) -> dict[str, str]:
    """Let a cluster say that it runs other versions; gives those that it said before."""
    command = [sys.executable, "-c", CLAIM, address, json.dumps(versions)]
    before: dict[str, str] = json.loads(
        subprocess.run(command, env=ENVIRONMENT | {"RAY_AUTH_MODE": "token"}, stdout=subprocess.PIPE, check=True).stdout
    )
    return before


def refused(folder: Path, address: str, environment: dict[str, str]) -> str:
    """What `slimvit run` says of a cluster that it cannot join."""
    (folder / "spec.yaml").write_text(SPEC)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", "spec.yaml", "--plain", "--address", address],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(("token", "says"), [("wrong" * 12, "does not accept this user's token"), ("", "holds none")])
def test_a_token_that_is_wrong_or_missing(token: str, says: str, address: str, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
    environment.pop("RAY_AUTH_MODE", None)
    if token:
        environment["RAY_AUTH_TOKEN"] = token
    said = refused(tmp_path, address, environment)
    assert f"error: the Ray cluster at `{address}`" in said
    assert says in said
    assert "`~/.ray/auth_token` here" in said


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"ray_version": "2.9.0"}, f"runs Ray 2.9.0 and Python {platform.python_version()}"),
        ({"python_version": "3.9.1"}, f"runs Ray {ray.__version__} and Python 3.9.1"),
    ],
)
def test_a_cluster_of_other_versions(versions: dict[str, str], says: str, address: str, tmp_path: Path) -> None:
    before = claim(address, versions)
    try:
        said = refused(tmp_path, address, ENVIRONMENT)
    finally:
        assert claim(address, before) == versions
    assert f"error: the Ray cluster at `{address}` {says}" in said
    assert f"this command Ray {ray.__version__} and Python {platform.python_version()}" in said
    assert "Install `ray[default,train,tune]==" in said
