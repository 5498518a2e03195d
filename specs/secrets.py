"""What looks like a secret: found in specs, where none belongs, and hidden in everything that is said."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<userinfo>[^\s/?#@'\"`<>]*)@")
"""`user:password@` in an address (RFC 3986, section 3.2.1)."""
_QUERY = re.compile(
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|sig|signature|token|access_token|password|api_key)=)"
    r"[^&#\s'\"`<>]+",
    re.IGNORECASE,
)
"""A secret in the query of an address, as in presigned ones."""
_TOKENS = {
    "an AWS access key id": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a GitHub token": re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "a Hugging Face token": re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
}
_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
"""In the name of an environment variable: its value is a secret."""
_NO_SECRET = re.compile(r"_(FILE|PATH|FOLDER|DIR|URI|URL|MODE|PARALLELISM)$", re.IGNORECASE)
"""At the end of such a name: its value is a place or a setting."""
_SHORTEST = 8
"""Characters; a shorter value is part of too many words to be hidden."""


def secret_name(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _NAME.search(variable) is not None and _NO_SECRET.search(variable) is None


def secret_in(text: str) -> str | None:
    """What in this text looks like a secret, in words; `None` if nothing does."""
    if _USERINFO.search(text):
        return "credentials in an address (`user:password@`)"
    if _QUERY.search(text):
        return "a token or a signature in an address"
    return next((what for what, pattern in _TOKENS.items() if pattern.search(text)), None)


def redact(text: str) -> str:
    """The text with everything hidden that looks like a secret, or is the value of a secret environment variable."""
    for variable, value in os.environ.items():
        if len(value) >= _SHORTEST and secret_name(variable):
            text = text.replace(value, HIDDEN)
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    for pattern in _TOKENS.values():
        text = pattern.sub(HIDDEN, text)
    return text


def strings(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All texts in plain data, with their paths; of a mapping the keys too."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield (*path, key), str(key)
            yield from strings(value, (*path, key))
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            yield from strings(value, (*path, i))
