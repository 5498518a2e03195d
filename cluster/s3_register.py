"""Leases as objects that are written only if nobody else wrote in between (`If-None-Match`, `If-Match`)."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from cluster.lease import Entry, Record
from cluster.marker import parts_of
from cluster.s3_client import client, objects
from cluster.s3_errors import absent, explained, raced
from specs.address import Address

_SUFFIX = ".json"


class S3Register:
    """`<prefix>/.leases/<name>.json`. An object's version is its ETag, the store's clock the `Date` of its answers.

    Args:
        address: of the leases.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    def read(self, name: str) -> Entry | None:
        """The record of a name; `None` if there is none."""
        with explained("read the lease", self._address):
            try:
                found = client(self._address).get_object(Bucket=self._address.bucket, Key=self._key(name))
                text = found["Body"].read()
            except ClientError as error:
                if absent(error):
                    return None
                raise
        return Entry(Record.decode(text), found["ETag"], max(0.0, now(found) - found["LastModified"].timestamp()))

    def write(self, name: str, record: Record, version: str | None) -> str | None:
        """Replace the version that was read (`None`: there was none); `None` if somebody else was faster."""
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with explained("write the lease", self._address):
            try:
                found = client(self._address).put_object(
                    Bucket=self._address.bucket, Key=self._key(name), Body=record.encode().encode(), **condition
                )
            except ClientError as error:
                if raced(error) or absent(error):
                    return None
                raise
        return str(found["ETag"])

    def remove(self, name: str) -> None:
        """Take a name out. Missing is fine."""
        with explained("remove the lease", self._address):
            client(self._address).delete_object(Bucket=self._address.bucket, Key=self._key(name))

    def names(self) -> list[str]:
        """All names with a record, released ones included."""
        start = self._address.below()
        keys = (str(found["Key"]) for found in objects(self._address, start))
        return [key.removeprefix(start).removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX)]

    def _key(self, name: str) -> str:
        return self._address.key(*parts_of(name)) + _SUFFIX


def now(answer: dict[str, Any]) -> float:
    """The store's time when it answered, in seconds since the epoch."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
