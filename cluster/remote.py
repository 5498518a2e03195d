"""Folders of files that lie elsewhere than on this node, such as images in a bucket."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from specs.address import Address

_S3 = "cluster.s3_folder:S3Folder"
"""Named, not imported: nodes whose images lie on their disks need no boto3."""


@dataclass(frozen=True)
class RemoteFile:
    """One file, as a listing shows it."""

    path: str
    """Below the folder, with `/`."""
    size: int
    """Bytes."""
    etag: str
    """Changes with the content."""


class RemoteFolder(Protocol):
    """Files that are listed there and read here. Holds where it is and nothing else, so that it can be sent around.

    Raises:
        StoreUnavailable: in all methods, if it cannot be read; the message says why.
    """

    def files(self, *, fresh: bool = False) -> tuple[RemoteFile, ...]:
        """All files, sorted by path; unless `fresh`, as this node saw them within the last minutes."""
        ...

    def local(self, file: RemoteFile) -> Path:
        """A copy in this node's cache, fetched if it is not there yet, and verified when it was."""
        ...

    def bring(self, files: Sequence[RemoteFile]) -> None:
        """Fetch those that are not here yet, side by side."""
        ...


def open_folder(address: str, endpoint: str | None = None) -> RemoteFolder:
    """The folder at an address.

    Raises:
        ValueError: if it is no address.
    """
    module, _, name = _S3.partition(":")
    folder: RemoteFolder = getattr(importlib.import_module(module), name)(Address.parse(address, endpoint))
    return folder
