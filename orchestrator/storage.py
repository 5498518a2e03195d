"""The artefact store of an experiment, found or refused before anybody reads it."""

from __future__ import annotations

from pathlib import Path

from cluster.local import LocalStore
from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from specs.address import Address, is_remote
from specs.experiment import StorageSpec


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


def _store(spec: StorageSpec) -> ArtifactStore:
    if not is_remote(spec.root):
        return LocalStore(Path(spec.root))
    from cluster.s3 import S3Store  # loads boto3, which a store on a disk does not need

    return S3Store(Address.parse(spec.root, spec.endpoint))
