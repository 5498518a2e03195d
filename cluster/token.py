"""Tokens of Ray clusters: whoever connects shows one if he has one.

A cluster that `ray.init` starts wants a token (made at the first start, kept in `~/.ray/auth_token`), and so does one
of `ray start` where that file exists. Ray's own client shows it only if `RAY_AUTH_MODE` says so, and reads that
variable once, when it is first imported.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path


def has_token() -> bool:
    """Whether this user holds a token for Ray clusters, where Ray looks for it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().is_file()


def show_token(*, starting: bool = False) -> None:
    """Set Ray's authentication mode for this process, unless the user has; call it before Ray is imported.

    Args:
        starting: a cluster will be started, which makes a token where there is none.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token" if starting or has_token() else "disabled")
    if starting and os.environ["RAY_AUTH_MODE"] == "token":
        make_token()


def make_token() -> None:
    """Make the token where there is none, and keep it from other users: `ray start` makes none, and what Ray makes
    elsewhere is readable by all."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named or "~/.ray/auth_token").expanduser()
    if named is None and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".auth_token-", encoding="ascii") as fresh:
            fresh.write(secrets.token_hex(32))  # as Ray makes it
            fresh.flush()
            with contextlib.suppress(FileExistsError):  # by another process meanwhile
                os.link(fresh.name, file)
    with contextlib.suppress(OSError):  # somebody else's, or a secret mounted read-only: his to keep
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
