"""The artefact store: folders of files that exist only once their marker is written.

An artefact is a folder ``<root>/<kind>/<name>/`` with a marker ``COMMIT.json``, written last, that holds the SHA-256
and size of every file in it. Without the marker the artefact does not exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

MARKER = "COMMIT.json"


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
    """What every store offers. Names use `/` between parts: `stages/<digest>`, `progress/<digest>/<step>`."""

    def commit(self, name: str, folder: Path) -> None:
        """Move the files of a local folder into the store and write the marker last. A second commit of the same
        name with the same content is a no-op; with other content it raises `FileExistsError`."""
        ...

    def committed(self, name: str) -> bool:
        """Whether the marker is there (cheap; does not read the files)."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Names of all committed artefacts below a prefix, sorted."""
        ...

    def scratch(self) -> Path:
        """A new folder that every node sees, and that is no artefact. The caller removes it."""
        ...

    def free_bytes(self) -> int:
        """Room left on the disk that artefacts go to."""
        ...

    def delete(self, name: str) -> None:
        """Remove an artefact, marker first. Missing is fine."""
        ...
