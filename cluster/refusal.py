"""Why a Ray cluster did not take this process in, and what to do about it."""

from __future__ import annotations

import re

_VERSIONS = re.compile(
    r"Version mismatch.*?Ray: (?P<ray>\S+)\s+Python: (?P<python>\S+)"
    r".*?Ray: (?P<own_ray>\S+)\s+Python: (?P<own_python>\S+)",
    re.S,
)
_DEEPEST = 10
"""Causes of causes that are looked at."""
_TOKEN = re.compile(r"authentication|unauthenticated|auth ?token|RAY_AUTH", re.I)


def refusal(address: str, error: BaseException, *, has_token: bool) -> str:
    """What a person reads when joining a cluster failed.

    Args:
        address: of the cluster.
        error: what Ray raised.
        has_token: whether this user holds a token.
    """
    said = _all(error)
    if versions := _VERSIONS.search(said):
        there, here = "Ray {ray} and Python {python}", "Ray {own_ray} and Python {own_python}"
        found = versions.groupdict()
        return (
            f"the Ray cluster at `{address}` runs {there.format(**found)}, this command {here.format(**found)}; they "
            f"must be the same. Install `ray[default,train,tune]=={found['ray']}` under Python {found['python']} here, "
            f"or start the cluster with {here.format(**found)} (`slimvit submit` needs neither: it runs in the cluster)"
        )
    if type(error).__name__ == "AuthenticationError" or _TOKEN.search(said):
        return token_refused(address, has_token=has_token)
    return (
        f"cannot join the Ray cluster at `{address}`: {_first_line(error)}. This machine must be one of its nodes "
        "(`ray start --address=…`), with the same versions of Ray and Python; where the cluster wants a token, put "
        "it into `~/.ray/auth_token`. From outside use `slimvit submit`"
    )


def token_refused(address: str, *, has_token: bool) -> str:
    """What a person reads when a cluster does not take his token, or wants one that he lacks.

    Args:
        address: of the cluster, or of its dashboard.
        has_token: whether this user holds a token.
    """
    what = "does not accept this user's token" if has_token else "wants a token, and this user holds none"
    return (
        f"the Ray cluster at `{address}` {what}. Copy the token of the user who started the cluster (on its head node: "
        "`ray get-auth-token`, or the file `~/.ray/auth_token`) into `~/.ray/auth_token` here, readable for you alone, "
        "or name its file in `RAY_AUTH_TOKEN_PATH`; the variable `RAY_AUTH_TOKEN`, where it is set, counts before both"
    )


def _all(error: BaseException) -> str:
    """What it says and what caused it: that a token was refused, Ray says only in the cause of a failed connection."""
    found: list[str] = []
    current: BaseException | None = error
    while current is not None and len(found) < _DEEPEST:
        found.append(str(current))
        current = current.__cause__ or current.__context__
    return "\n".join(found)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
