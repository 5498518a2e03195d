"""What a search has proposed and decided so far, as small artefacts; read by the plan and by the next run.

    searches/<digest>/trials/<trial>            values of a trial
    searches/<digest>/rungs/<trial>-<epoch>     what ASHA judged it by after an epoch
    searches/<digest>/verdicts/<trial>          what became of it, and what the searcher was told

Whatever is written stays: a search that is run again proposes the same and decides nothing twice.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError
from orchestrator.storage import commit_texts

FILE = "content.json"
Noted = TypeVar("Noted", bound=BaseModel)

Values = dict[str, JsonValue]
"""Name of a dimension → its value; of an axis of the matrix, the label."""


class Verdict(BaseModel):
    """What became of a trial; the searcher is told this, whatever happens to its stages later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["finished", "stopped", "failed", "impossible"]
    """`impossible`: it cannot be planned."""
    objectives: dict[str, float] = {}
    """Objective → mean over seeds; of a finished trial."""
    curve: dict[int, float] = {}
    """Epoch of the last training stage → top-1 in %, as far as judged."""
    evidence: str = ""
    """Why it was stopped, for people."""
    rule: Literal["asha", "dominated"] | None = None
    """Who stopped it."""
    by: str | None = None
    """Combination that dominates it."""


class Rung(BaseModel):
    """What a trial reached where ASHA judges, and what that was compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: int
    epoch: int
    top1: float
    """In %."""
    cutoff: float | None = None
    """What it had to reach, in %; `None` for the first trial that was judged here."""
    others: int = 0
    """Trials that were judged here before."""
    goes_on: bool = True


class Ledger:
    """The ledger of one search in an artefact store."""

    def __init__(self, store: ArtifactStore, digest: str) -> None:
        self._store, self._folder = store, f"searches/{digest}"

    def trials(self) -> dict[int, Values]:
        """Number of each trial proposed so far → its values, by number."""
        return {int(name): content["values"] for name, content in self._all("trials")}

    def verdicts(self) -> dict[int, Verdict]:
        """Number of each trial that is judged → what became of it."""
        return {int(name): self._typed(Verdict, "verdicts", name, content) for name, content in self._all("verdicts")}

    def rungs(self) -> list[Rung]:
        """All judgements, by trial and epoch."""
        return [self._typed(Rung, "rungs", name, content) for name, content in self._all("rungs")]

    def propose(self, trial: int, values: Values) -> None:
        """Note a trial."""
        self._note(f"trials/{trial:05d}", {"values": values})

    def judge(self, trial: int, verdict: Verdict) -> None:
        """Note what became of a trial; a verdict that is there already stays."""
        self._note(f"verdicts/{trial:05d}", verdict.model_dump(mode="json"))

    def pass_rung(self, rung: Rung) -> None:
        """Note a judgement of ASHA."""
        self._note(f"rungs/{rung.trial:05d}-{rung.epoch:05d}", rung.model_dump(mode="json"))

    def _note(self, name: str, content: dict[str, Any]) -> None:
        full = f"{self._folder}/{name}"
        if self._store.committed(full):
            return
        try:
            commit_texts(self._store, full, {FILE: json.dumps(content, indent=1)})
        except FileExistsError:  # another driver on this store was faster, and its word counts
            return
        except OSError as error:
            raise StoreError(f"the search cannot keep `{full}` in the store: {error}") from error

    def _all(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        """Last part of the name, content; sorted by name."""
        found = []
        for name in self._store.names(f"{self._folder}/{kind}"):
            try:
                text = (self._store.fetch(name) / FILE).read_text(encoding="utf-8")
                found.append((name.rsplit("/", 1)[1], dict(json.loads(text))))
            except (OSError, ValueError) as error:
                raise self._damaged(name, error) from error
        return found

    def _typed(self, kind: type[Noted], folder: str, name: str, content: object) -> Noted:
        try:
            return kind.model_validate_json(json.dumps(content))
        except ValueError as error:
            raise self._damaged(f"{self._folder}/{folder}/{name}", error) from error

    def _damaged(self, name: str, error: Exception) -> StoreError:
        return StoreError(
            f"the ledger of the search is damaged at `{name}`: {error}. Delete `{self._folder}` in the store; the "
            "search then begins anew, and stages that are finished are not run again"
        )
