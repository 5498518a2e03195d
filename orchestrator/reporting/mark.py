"""A note in the store that MLflow has everything, so that what is finished need not ask it.

Opening the record of a large experiment takes MLflow longer than the whole comparison does.
"""

from __future__ import annotations

import hashlib
import json

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan
from orchestrator.reporting.record import identity, sqlite_file
from orchestrator.storage import commit_texts
from specs.experiment import Experiment


class RecordMark:
    """The note on one plan's record; it names what the record was made from (`record.fingerprint`)."""

    def __init__(self, plan: Plan, experiment: Experiment, store: ArtifactStore) -> None:
        self._uri, self._store = experiment.tracking.uri, store
        self._file = sqlite_file(self._uri)
        where = identity(self._uri, experiment.tracking.experiment or experiment.name, plan)
        content = json.dumps([*where, experiment.model_dump_json()])
        self._name = f"records/{hashlib.sha256(content.encode()).hexdigest()}"

    @property
    def name(self) -> str:
        """Of the note in the store."""
        return self._name

    def complete(self, fingerprint: str | None = None) -> bool:
        """Whether MLflow has everything, as far as can be told without asking; with a fingerprint, exactly this."""
        if not self._store.committed(self._name) or not (self._file is None or self._file.is_file()):
            return False
        return fingerprint is None or self._fingerprint() == fingerprint

    def set(self, fingerprint: str) -> None:
        """MLflow has everything that this fingerprint stands for."""
        if self._store.committed(self._name):
            if self._fingerprint() == fingerprint:
                return
            self._store.delete(self._name)
        text = json.dumps({"tracking": self._uri, "fingerprint": fingerprint})
        commit_texts(self._store, self._name, {"record.json": text})

    def invalidate(self) -> None:
        """There will be more to record."""
        self._store.delete(self._name)

    def _fingerprint(self) -> str | None:
        try:
            folder = self._store.fetch(self._name)
            found = json.loads((folder / "record.json").read_text(encoding="utf-8")).get("fingerprint")
        except (OSError, ValueError):  # a damaged note is none: the record is asked, and the note written anew
            return None
        return found if isinstance(found, str) else None
