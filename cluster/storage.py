"""The artefact store: folders of files that exist only once their marker is written.

An artefact is a name like ``stages/<digest>`` and a set of files. A marker ``COMMIT.json``, written last, holds the
SHA-256 and size of every file. Without the marker the artefact does not exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.lease import Register

MARKER = "COMMIT.json"
ABANDONED_S = 24 * 3600.0
"""What has been arriving for so long belongs to a writer that was killed."""


class StoreUnavailable(OSError):
    """The store, or a bucket with images, cannot be used; the message says why and what to do.

    Args:
        message: for people.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class Kept:
    """What lies in a store under one name."""

    name: str
    """Of an artefact; for what killed writers left, a name that `discard` takes."""
    size: int
    """Bytes of all files, the marker's included."""
    age_s: float
    """Seconds since it was last written, by the store's own clock."""


@dataclass(frozen=True)
class Inventory:
    """Everything that lies in a store."""

    artefacts: tuple[Kept, ...]
    """Committed, sorted by name."""
    leftovers: tuple[Kept, ...]
    """Never committed: still arriving, or left by writers that were killed."""


class ArtifactSource(Protocol):
    """What reads artefacts."""

    def fetch(self, name: str, files: Collection[str] | None = None) -> Path:
        """Local read-only folder with the artefact's files, every digest verified; with `files`, only these need to
        be there and are verified (the results of a stage without its weights). Files the artefact lacks are no error.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if a file is missing or differs from its digest; the message names it.
        """
        ...


class ArtifactStore(ArtifactSource, Protocol):
    """What every store offers. Names use `/` between parts: `stages/<digest>`, `progress/<digest>/<step>`.

    A store holds where it is and nothing else, so that it can be sent to other processes and nodes. Where its place
    cannot be reached, every method raises `StoreUnavailable`.
    """

    @property
    def location(self) -> str:
        """Where it is: what `--store` takes, for people as well."""
        ...

    def place(self, name: str) -> str:
        """Where the files of an artefact lie, for people."""
        ...

    def check(self) -> None:
        """Check that it can be read; it may be empty, or not be there yet.

        Raises:
            OSError: with what is wrong and the way out.
        """
        ...

    def prepare(self) -> None:
        """Make it ready to be written.

        Raises:
            OSError: with what is wrong and the way out.
        """
        ...

    def commit(self, name: str, folder: Path) -> None:
        """Move the files of a local folder into the store and write the marker last. A second commit of the same
        name with the same content is a no-op; with other content it raises `FileExistsError`."""
        ...

    def committed(self, name: str) -> bool:
        """Whether the marker is there (cheap; does not read the files)."""
        ...

    def content(self, name: str) -> str:
        """SHA-256 of what the artefact's files hold, as it was committed (the files are not read). It differs once the
        artefact was deleted and computed anew with another outcome.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if its marker is damaged.
        """
        ...

    def present(self, names: Collection[str]) -> frozenset[str]:
        """Which of these are committed; quicker than asking for each."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Names of all committed artefacts below a prefix, sorted."""
        ...

    def damage(self, name: str) -> list[str]:
        """What is wrong with an artefact as it lies in the store, no cache in between; empty if nothing is.

        Raises:
            FileNotFoundError: if there is no such artefact.
        """
        ...

    def inventory(self) -> Inventory:
        """Everything that is there, with sizes."""
        ...

    def scratch(self) -> str:
        """A new folder, or address, that every node sees, and that is no artefact. Whoever asked discards it."""
        ...

    def discard(self, leftover: str) -> None:
        """Remove a scratch folder, or one of the inventory's leftovers. Missing is fine."""
        ...

    def free_bytes(self) -> int | None:
        """Room left on the disk that artefacts go to; `None` where there is no such limit."""
        ...

    def delete(self, name: str) -> None:
        """Remove an artefact, marker first. Missing is fine."""
        ...

    def register(self) -> Register:
        """Where drivers note which stages they are at."""
        ...
