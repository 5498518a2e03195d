"""Addresses of objects: `s3://bucket/prefix`, with the endpoint of another store than Amazon's behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from specs.secrets import secret_in

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SCHEME = "s3://"


def is_remote(place: str) -> bool:
    """Whether a place is an address, and no path."""
    return "://" in place


@dataclass(frozen=True)
class Address:
    """A bucket and the beginning of the keys in it."""

    bucket: str
    prefix: str = ""
    """Without slashes around it."""
    endpoint: str | None = None
    """`http(s)://HOST[:PORT]` of the S3-compatible store; `None` = AWS_ENDPOINT_URL, or Amazon's."""

    @classmethod
    def parse(cls, text: str, endpoint: str | None = None) -> Address:
        """Read `s3://bucket/prefix`, or `s3://bucket/prefix?endpoint=http://HOST:PORT`.

        Args:
            text: the address.
            endpoint: if the text names none.

        Raises:
            ValueError: if it is no such address, or holds a password (which the message does not repeat).
        """
        check_no_secret(text)
        parts = urlsplit(text)
        if parts.scheme != "s3":
            raise ValueError(
                f"`{text}` is no place that slimvit knows; write a folder, or `s3://BUCKET/PREFIX`. Other stores that "
                "speak S3's language (MinIO, Ceph, R2, …) have `s3://` addresses too, and an `endpoint`"
            )
        if not _BUCKET.fullmatch(parts.netloc):
            raise ValueError(
                f"`{text}` names no bucket: `{parts.netloc}` is no bucket's name (3 to 63 lower-case letters, digits, "
                "`.` and `-`)"
            )
        named = parse_qs(parts.query, strict_parsing=bool(parts.query))
        if set(named) - {"endpoint"} or parts.fragment:
            raise ValueError(f"`{text}`: behind the prefix only `?endpoint=http(s)://HOST:PORT` can stand")
        own = named.get("endpoint", [None])[0]
        if own is not None and endpoint is not None and own != endpoint:
            raise ValueError(f"two endpoints are named, `{own}` and `{endpoint}`; write one")
        endpoint = own or endpoint
        return cls(parts.netloc, parts.path.strip("/"), None if endpoint is None else checked_endpoint(endpoint))

    def __str__(self) -> str:
        """What `parse` reads."""
        text = self.plain
        return text if self.endpoint is None else f"{text}?endpoint={quote(self.endpoint, safe=':/')}"

    @property
    def plain(self) -> str:
        """Without the endpoint."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, *parts: str) -> str:
        """Key of an object below the prefix."""
        return "/".join(part for part in (self.prefix, *parts) if part)

    def below(self, *parts: str) -> str:
        """What the keys below a name begin with."""
        key = self.key(*parts)
        return f"{key}/" if key else ""


def checked_endpoint(text: str) -> str:
    """An endpoint as it is.

    Raises:
        ValueError: if it is none, or holds a password.
    """
    check_no_secret(text)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"`{text}` is no endpoint; write `https://HOST` or `http://HOST:PORT`")
    return text.rstrip("/")


def check_no_secret(text: str) -> None:
    """Refuse addresses that hold a secret, without repeating it.

    Raises:
        ValueError: if there is one.
    """
    found = secret_in(text)
    if found is not None:
        raise ValueError(
            f"this holds {found}, which would stand in plans, records and logs. Leave it out; credentials come from "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), from `~/.aws`, or from the machine's role"
        )


def checked_place(text: str) -> str:
    """A folder's path as it is, or an address that `Address.parse` reads.

    Raises:
        ValueError: if it is an address and no such one.
    """
    if is_remote(text):
        Address.parse(text)
    return text
