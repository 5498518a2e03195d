"""Why stages failed, kept in the store for those who ask later: `failures/<digest>`, one small artefact a stage.

It is a note, no result: it is never part of a digest, the next run of the stage replaces it, and it is gone once the
stage is finished. A store that cannot keep it costs nothing but the note.
"""

from __future__ import annotations

import contextlib
import datetime
import json

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan
from orchestrator.storage import commit_texts

KIND = "failures"
_FILE = "failure.json"


class FailureNotes:
    """The notes of one store, as a run keeps them.

    Args:
        store: where they are.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._noted = {name.rsplit("/", 1)[1] for name in store.names(KIND)}

    def put(self, digest: str, label: str, reason: str) -> None:
        """Note why a stage failed, in place of any earlier note."""
        note = {"label": label, "reason": reason, "at": datetime.datetime.now(datetime.UTC).isoformat()}
        self.drop(digest)
        with contextlib.suppress(OSError):
            commit_texts(self._store, f"{KIND}/{digest}", {_FILE: json.dumps(note, indent=1)})
            self._noted.add(digest)

    def drop(self, digest: str) -> None:
        """The stage is at work again, or finished."""
        if digest in self._noted:
            with contextlib.suppress(OSError):
                self._store.delete(f"{KIND}/{digest}")
                self._noted.discard(digest)


def reasons(plan: Plan, store: ArtifactStore) -> dict[str, str]:
    """Digest of a stage of the plan → why it failed when it was last tried. Damaged notes count as none."""
    found: dict[str, str] = {}
    for name in store.names(KIND):
        digest = name.rsplit("/", 1)[1]
        if digest in plan.stages:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                note = json.loads((store.fetch(name) / _FILE).read_text(encoding="utf-8"))
                found[digest] = str(note["reason"])
    return found
