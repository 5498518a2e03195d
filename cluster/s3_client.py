"""The S3 client of a process, with bounded patience."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from cluster.s3_errors import explained
from specs.address import Address

MIB = 1 << 20
PART_BYTES = 16 * MIB
"""Larger files travel in parts of this size, side by side; S3 wants at least 5 MiB."""
_CONCURRENCY = 10
_ATTEMPTS = 6
"""With botocore's growing pauses (at most 20 s each) about half a minute; AWS_MAX_ATTEMPTS changes it."""
_MAKING = threading.Lock()
"""Making a client is the one thing in boto3 that threads must not do at the same time."""


def client(address: Address) -> Any:
    """The client for an address; one a process, because what a fork copies of it cannot be used.

    Raises:
        StoreUnavailable: if it cannot be made (a profile that is not there, an endpoint that is none).
    """
    with _MAKING, explained("use", address):
        return _client(address.endpoint, os.getpid())


@functools.lru_cache(maxsize=8)
def _client(endpoint: str | None, pid: int) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or _ATTEMPTS)},
        connect_timeout=10,
        read_timeout=60,
        tcp_keepalive=True,
        max_pool_connections=4 * _CONCURRENCY,
        # Every file is verified by slimvit's own digest, whole, and on every read.
        response_checksum_validation="when_required",
        # Elsewhere than at Amazon, `bucket.host` is rarely a name that resolves.
        s3={"addressing_style": "path"} if endpoint or os.environ.get("AWS_ENDPOINT_URL") else {},
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def transfer_config() -> TransferConfig:
    """How large files travel."""
    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=_CONCURRENCY,
        num_download_attempts=_ATTEMPTS,
        preferred_transfer_client="classic",
    )


def objects(address: Address, prefix: str) -> Iterator[dict[str, Any]]:
    """All objects whose keys begin so, as S3 lists them (`Key`, `Size`, `ETag`, `LastModified`), sorted by key."""
    with explained("list", address):
        pages = client(address).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=address.bucket, Prefix=prefix):
            yield from page.get("Contents", ())
