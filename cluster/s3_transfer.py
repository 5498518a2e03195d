"""Files to S3 and back: in parts, side by side, each file with its digest."""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from boto3.s3.transfer import create_transfer_manager
from botocore.exceptions import ClientError

from cluster.marker import PART_BYTES as HASHED_BYTES
from cluster.marker import Contents, difference, size_and_sha256
from cluster.s3_client import client, transfer_config
from cluster.s3_errors import absent, explained
from specs.address import Address

_FILES_AT_ONCE = 8


class _Manager(Protocol):
    """What is used of s3transfer's `TransferManager`, which has no types."""

    def upload(self, file: str, bucket: str, key: str, extra_args: dict[str, Any]) -> Future[None]: ...

    def download(self, bucket: str, key: str, file: Any) -> Future[None]: ...


@contextmanager
def _manager(address: Address) -> Iterator[_Manager]:
    """Cuts into parts, sends them side by side, tries failed ones again, and aborts an upload that fails."""
    with create_transfer_manager(client(address), transfer_config()) as manager:
        yield manager


def upload(address: Address, folder: Path, files: Collection[str]) -> Contents:
    """Send files to the keys below an address. S3 checks what arrives: the SHA-256 of a small file, and a CRC of each
    part of a large one, because its SHA-256 is computed here already.

    Returns:
        Digest and size of each; the digests are computed while the files travel.

    Raises:
        StoreUnavailable: if one of them cannot be written.
    """
    with (
        explained("write to", address),
        _manager(address) as manager,
        ThreadPoolExecutor(_FILES_AT_ONCE) as threads,
    ):
        sent = {file: threads.submit(_send, manager, address, folder / file, file) for file in files}
        return {file: result.result() for file, result in sent.items()}


def _send(manager: _Manager, address: Address, path: Path, file: str) -> dict[str, Any]:
    large = path.stat().st_size > HASHED_BYTES
    # A part's checksum is computed as it is sent; the digest of a small file serves for both. Of parts a second SHA-256
    # would take as much of a core again as the digest does.
    under_way = manager.upload(str(path), address.bucket, address.key(file), _CHECKED) if large else None
    size, digest = size_and_sha256(str(path))
    if under_way is not None:
        under_way.result()
    else:
        client(address).put_object(
            Bucket=address.bucket,
            Key=address.key(file),
            Body=path.read_bytes(),
            ChecksumSHA256=base64.b64encode(bytes.fromhex(digest)).decode(),
        )
    return {"size": size, "sha256": digest}


_CHECKED = {"ChecksumAlgorithm": "CRC32"}


def download(address: Address, contents: Contents, folder: Path) -> list[str]:
    """Fetch files from the keys below an address; each appears in `folder` whole and verified, or not at all.

    Returns:
        What is wrong with those that are not what the marker says, in words.

    Raises:
        StoreUnavailable: if the store does not answer.
        OSError: if the folder cannot be written.
    """
    with (
        explained("read", address),
        _manager(address) as manager,
        ThreadPoolExecutor(_FILES_AT_ONCE) as threads,
    ):
        found = [threads.submit(_receive, manager, address, folder, *item) for item in contents.items()]
        return [problem for each in found if (problem := each.result()) is not None]


def _receive(manager: _Manager, address: Address, folder: Path, file: str, expected: dict[str, Any]) -> str | None:
    target, key = folder / file, address.key(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".arriving-", dir=target.parent)
    try:
        # A file that can `seek`: into any other, s3transfer (0.19) never finishes with more than ten parts.
        with os.fdopen(handle, "wb") as arriving:
            try:
                manager.download(address.bucket, key, arriving).result()
            except ClientError as error:
                if absent(error):
                    return f"`{address.plain}/{file}` is missing"
                raise
        if wrong := difference(temporary, expected):
            return f"`{address.plain}/{file}` {wrong}"
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        return None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
