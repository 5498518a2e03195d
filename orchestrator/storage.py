"""The artefact store of an experiment, found or refused before anybody reads it."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.local import LocalStore
from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from specs.address import Address, is_remote
from specs.experiment import StorageSpec

_BUCKET = "cluster.s3:S3Store"
"""Named, not imported: machines whose store is a folder need no boto3."""


def open_store(place: StorageSpec | Path | str) -> ArtifactStore:
    """A store that may still be empty.

    Args:
        place: what the spec says, or a store's `location`: a folder, or `s3://BUCKET/PREFIX`.

    Raises:
        StoreError: if it cannot be read, or a file is in its place.
    """
    spec = place if isinstance(place, StorageSpec) else StorageSpec.model_construct(root=str(place))
    try:
        store = _store(spec)
        store.check()
    except (OSError, ValueError) as error:
        raise StoreError(str(error)) from error
    return store


def commit_texts(store: ArtifactStore, name: str, files: Mapping[str, str]) -> None:
    """Commit an artefact of small text files (name → content).

    Raises:
        FileExistsError: if there is one of this name with other content.
        OSError: if the store cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="slimvit-") as scratch:
        folder = Path(scratch) / "artefact"
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        store.commit(name, folder)


def _store(spec: StorageSpec) -> ArtifactStore:
    if not is_remote(spec.root):
        return LocalStore(Path(spec.root))
    module, _, name = _BUCKET.partition(":")
    store: ArtifactStore = getattr(importlib.import_module(module), name)(Address.parse(spec.root, spec.endpoint))
    return store
