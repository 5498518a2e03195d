"""Tokens of Ray clusters: whoever connects shows one if he has one.

A cluster that `ray.init` starts wants a token (made at the first start, kept in `~/.ray/auth_token`), and so does one
of `ray start` where that file exists. Ray's own client shows it only if `RAY_AUTH_MODE` says so, and reads that
variable once, when it is first imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
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


def make_token() -> None:
    """Make a token where there is none; `ray start` makes none. Ray leaves its file open to all; that is mended."""
    if not has_token():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    file = Path("~/.ray/auth_token").expanduser()
    if file.is_file():
        file.chmod(0o600)
