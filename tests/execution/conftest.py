"""What the tests of runs share: starting a cluster takes as long as many of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cluster.cache import FOLDER_VARIABLE
from tests.cluster.s3_process import CREDENTIALS
from tests.execution.head import head


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a cluster with 2 CPUs that outlives the runs on it; its workers may read the buckets of tests."""
    cache = {FOLDER_VARIABLE: str(tmp_path_factory.mktemp("cache"))}
    with head(2, {**os.environ, **CREDENTIALS, **cache}) as addresses:
        yield addresses
