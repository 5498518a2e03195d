"""What finished stages left in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.storage import ArtifactSource
from orchestrator.errors import StoreError


def fetched(store: ArtifactSource, name: str) -> Path:
    """Local folder of a finished stage, every file verified.

    Raises:
        StoreError: if it is missing or damaged; says what to delete.
    """
    try:
        return store.fetch(name)
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"a finished stage cannot be used: {error}") from error


def result_of(store: ArtifactSource, name: str) -> dict[str, Any]:
    """The content of a finished stage's `result.json`; raises as `fetched` does."""
    result: dict[str, Any] = json.loads((fetched(store, name) / "result.json").read_text(encoding="utf-8"))
    return result
