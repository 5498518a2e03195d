"""What `slimvit cluster` remembers on this machine about the clusters that it started."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def state_folder() -> Path:
    """The user's folder for such things (XDG base directories), whether it exists or not."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "slimvit" / "clusters"


def remember(kind: str, name: str, what: dict[str, Any]) -> Path:
    """Write down a cluster, readable for this user only; replaces what was known of it.

    Returns:
        The file.
    """
    file = _file(kind, name)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(what, stream, indent=1)
    os.replace(temporary, file)
    return file


def recall(kind: str, name: str) -> dict[str, Any] | None:
    """What was written down of a cluster; `None` if nothing was, or if the file is no such record."""
    try:
        what = json.loads(_file(kind, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return what if isinstance(what, dict) else None


def forget(kind: str, name: str) -> None:
    """Remove what was written down of a cluster. Nothing is fine."""
    _file(kind, name).unlink(missing_ok=True)


def _file(kind: str, name: str) -> Path:
    return state_folder() / f"{kind}-{name}.json"
