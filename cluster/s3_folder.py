"""Images in a bucket: listed once, fetched when they are needed, kept in the node's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import ClientError

from cluster.cache import alone, cache_folder, short_name
from cluster.remote import RemoteFile
from cluster.s3_client import client, objects
from cluster.s3_errors import absent, explained, raced
from cluster.storage import StoreUnavailable
from specs.address import Address

_LISTED_S = 300.0
"""How long the processes of a node share a listing: a list request shows 1,000 images, and ImageNet has 1.3 million."""
_AT_ONCE = 32
"""An image is small and far away, so that most of its time is waiting."""
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3Folder:
    """Objects below an address; see `cluster.remote.RemoteFolder` for what the methods promise.

    Args:
        address: of the folder.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    def files(self, *, fresh: bool = False) -> tuple[RemoteFile, ...]:
        """All files, sorted by path; unless `fresh`, as this node saw them within the last minutes."""
        kept = cache_folder() / "listings" / f"{short_name(str(self._address))}.json"
        with alone(kept.with_suffix(".lock")):
            if not fresh and (known := _read(kept)) is not None:
                return known
            cut = len(self._address.below())
            found = tuple(
                sorted(
                    (
                        RemoteFile(str(each["Key"])[cut:], int(each["Size"]), str(each["ETag"]).strip('"'))
                        for each in objects(self._address, self._address.below())
                        if not str(each["Key"]).endswith("/")
                    ),
                    key=lambda file: PurePosixPath(file.path),
                )
            )
            temporary = kept.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps([astuple(file) for file in found]), encoding="utf-8")
            temporary.replace(kept)
        return found

    def local(self, file: RemoteFile) -> Path:
        """A copy in this node's cache, fetched if it is not there yet, and verified when it was."""
        target = self._target(file)
        if not _there(target, file):
            self._fetch(file, target)
        return target

    def bring(self, files: Sequence[RemoteFile]) -> None:
        """Fetch those that are not here yet, side by side."""
        missing = [file for file in files if not _there(self._target(file), file)]
        if missing:
            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as threads:
                list(threads.map(self.local, missing))

    def _target(self, file: RemoteFile) -> Path:
        name = short_name(f"{self._address} {file.path} {file.etag}")
        return cache_folder() / "images" / name[:2] / (name + PurePosixPath(file.path).suffix)

    def _fetch(self, file: RemoteFile, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        where = f"{self._address.plain}/{file.path}"
        with explained(f"read `{file.path}` from", self._address):
            try:
                answer = client(self._address).get_object(
                    Bucket=self._address.bucket, Key=self._address.key(file.path), IfMatch=f'"{file.etag}"'
                )
                content: bytes = answer["Body"].read()
            except ClientError as error:
                if raced(error) or absent(error):
                    raise StoreUnavailable(
                        f"the image {where} has changed or is gone since the images were listed. Run the same command "
                        "again: it plans with the images that are there"
                    ) from error
                raise
        if len(content) != file.size or not _agrees(content, file.etag, answer):
            raise StoreUnavailable(f"the image {where} arrived damaged. Run the same command again to go on")
        handle, temporary = tempfile.mkstemp(prefix=".arriving-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _there(path: Path, file: RemoteFile) -> bool:
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _agrees(content: bytes, etag: str, answer: dict[str, Any]) -> bool:
    """Whether the content's MD5 is the ETag, where the ETag is one: not after uploads in parts or with keys of KMS."""
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    if encrypted or not _MD5.fullmatch(etag):
        return True
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == etag


def _read(path: Path) -> tuple[RemoteFile, ...] | None:
    try:
        if time.time() - path.stat().st_mtime > _LISTED_S:
            return None
        return tuple(RemoteFile(*entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
