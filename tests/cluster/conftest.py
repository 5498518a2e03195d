"""A bucket on a real HTTP endpoint, and both kinds of store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cache import FOLDER_VARIABLE
from cluster.local import LocalStore
from cluster.s3 import S3Store
from cluster.s3_client import client
from cluster.storage import ArtifactStore
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS, s3_server


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Of moto's server, in a process of its own."""
    with s3_server() as address:
        yield address


@pytest.fixture
def address(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """A place in a new bucket; this node's cache is empty."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    made = Address(f"bucket-{uuid.uuid4().hex[:12]}", "some/prefix", endpoint)
    client(made).create_bucket(Bucket=made.bucket)
    return made


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """Each kind of store, empty."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return S3Store(request.getfixturevalue("address"))
