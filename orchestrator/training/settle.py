"""Commit a finished stage, or take what another run of the same spec committed first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.storage import ArtifactStore
from orchestrator.training.finished import result_of


def settle(store: ArtifactStore, name: str, folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Commit the folder of a finished stage with its result.

    Two runs of the same spec may finish the same stage. Their networks agree, but their times do not, so the store
    refuses the second; the first one's result then counts for both.

    Args:
        folder: everything but `result.json`, which is written here.

    Returns:
        The result that is in the store.

    Raises:
        StoreError: if what another run committed is damaged.
    """
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    try:
        store.commit(name, folder)
    except FileExistsError:
        return result_of(store, name)
    return result
