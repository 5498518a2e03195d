"""The artefact store of an experiment, found or refused before anybody reads it."""

from __future__ import annotations

from pathlib import Path

from cluster.local import LocalStore
from orchestrator.errors import StoreError


def open_store(root: Path | str) -> LocalStore:
    """A store that may still be empty.

    Raises:
        StoreError: if a file is in its place. Read as a store it would look empty, and finished work as missing.
    """
    store = LocalStore(Path(root))
    for place in (store.root, *store.root.parents):
        if place.is_dir():
            break
        if place.exists():
            raise StoreError(
                f"the artefact store `{store.root}` cannot be read: `{place}` is a file. Set `storage.root` (or "
                "`--store`) to the folder of the store"
            )
    return store
