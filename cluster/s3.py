"""The artefact store in a bucket of S3, or of any store that speaks its language."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cluster.aws_codes import code_of
from cluster.cache import Cache, cache_folder
from cluster.marker import Contents, Marker, contents_of, difference, files_below, parts_of, same
from cluster.s3_client import client, objects
from cluster.s3_errors import absent, explained, raced
from cluster.s3_register import S3Register, now
from cluster.s3_transfer import download, upload
from cluster.storage import ABANDONED_S, MARKER, Inventory, Kept, StoreUnavailable
from specs.address import Address

_ASKED_ONE_BY_ONE = 20
"""More names than this are looked for in a listing."""
_DELETED_AT_ONCE = 1_000
"""Keys in one request; S3 takes no more."""
_MARKERS_AT_ONCE = 16
_LEASES, _PROBE, _SCRATCH = ".leases", ".probe", ".scratch"
_UNSAFE_ENDPOINT = (
    "writes a lease that is there already: it ignores `If-None-Match`, so that two runs would compute the same stages "
    "and neither would know. Use a store that knows conditional writes, such as Amazon S3 or a recent MinIO"
)


class S3Store:
    """Objects below an address; see `cluster.storage.ArtifactStore` for what the methods promise.

    The files of a commit go to `<prefix>/<name>/<commit>/…`, a place of their own, and the marker
    `<prefix>/<name>/COMMIT.json` follows last, by a write that fails if there is one. So a reader sees an artefact
    whole or not at all, and nobody ever writes over a file that a marker names. What is fetched is kept in this
    node's cache, where its digests are verified each time. Objects hold nothing but the address: they can be sent to
    other processes and nodes. Credentials come from the environment of each process, or from boto3's other places.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    def __repr__(self) -> str:
        return f"S3Store({self.location!r})"

    @property
    def location(self) -> str:
        """The address."""
        return str(self._address)

    def place(self, name: str) -> str:
        """Address of the artefact."""
        return f"{self._address.plain}/{'/'.join(parts_of(name))}"

    def check(self) -> None:
        """Check that it can be listed.

        Raises:
            StoreUnavailable: with what is wrong and the way out.
        """
        with explained("read", self._address):
            self._client().list_objects_v2(Bucket=self._address.bucket, Prefix=self._address.below(), MaxKeys=1)

    def prepare(self) -> None:
        """Check that it can be written, read and deleted, and that of two who write at once only one does.

        Raises:
            StoreUnavailable: with what is wrong and the way out.
        """
        self.check()
        key = self._address.key(_PROBE, uuid.uuid4().hex)
        with explained("write to", self._address):
            self._client().put_object(Bucket=self._address.bucket, Key=key, Body=b"", IfNoneMatch="*")
            try:
                self._client().put_object(Bucket=self._address.bucket, Key=key, Body=b"", IfNoneMatch="*")
            except ClientError as error:
                if not raced(error):
                    raise
            else:
                raise StoreUnavailable(f"{self._address} {_UNSAFE_ENDPOINT}")
            finally:
                self._client().delete_object(Bucket=self._address.bucket, Key=key)
        self._abort_uploads()

    def commit(self, name: str, folder: Path) -> None:
        """Move the files of `folder` into the store and write the marker last; `folder` is gone afterwards.

        Raises:
            FileExistsError: if the artefact exists with other content.
            StoreUnavailable: if the store cannot be written.
        """
        if self.committed(name):
            self._same_or_refuse(name, contents_of(folder), folder)
            return
        commit = uuid.uuid4().hex
        contents = upload(self._below(name, commit), folder, files_below(folder))
        if not self._write_marker(name, Marker(contents, commit)):
            self._delete_below(self._address.below(name, commit))
            self._same_or_refuse(name, contents, folder)
            return
        # What was written here is often read here next.
        cache, key = self._cache(), self._cache_key(name)
        with cache.lock(key):
            cached = cache.folder(key)
            shutil.rmtree(cached)
            try:
                os.rename(folder, cached)
            except OSError:  # another file system: a later `fetch` brings it
                shutil.rmtree(folder)

    def committed(self, name: str) -> bool:
        """Whether the marker is there."""
        with explained("read", self._address):
            try:
                self._client().head_object(Bucket=self._address.bucket, Key=self._marker_key(name))
                return True
            except ClientError as error:
                if absent(error):
                    return False
                raise

    def content(self, name: str) -> str:
        """SHA-256 of what the artefact's files hold, by its marker.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if its marker is damaged.
        """
        return self._marker(name).content

    def present(self, names: Collection[str]) -> frozenset[str]:
        """Which of these are committed: asked for side by side, or, if they are many, found in a listing."""
        if len(names) <= _ASKED_ONE_BY_ONE:
            with ThreadPoolExecutor(max(1, len(names))) as threads:
                found = threads.map(self.committed, names)
                return frozenset(name for name, there in zip(names, found, strict=True) if there)
        kinds = {parts_of(name)[0] for name in names}
        return frozenset(name for kind in kinds for name in self.names(kind)) & frozenset(names)

    def fetch(self, name: str, files: Collection[str] | None = None) -> Path:
        """A folder in this node's cache with the artefact's files, every digest (or those of `files`) verified.

        Raises:
            FileNotFoundError: if there is no such artefact.
            ValueError: if a file is missing or differs from its digest.
            StoreUnavailable: if the store does not answer.
        """
        marker = self._marker(name)
        wanted = {file: known for file, known in marker.files.items() if files is None or file in files}
        cache, key = self._cache(), self._cache_key(name)
        with cache.lock(key):
            folder = cache.folder(key)
            wanted = {file: known for file, known in wanted.items() if difference(str(folder / file), known)}
            if wanted:
                cache.make_room(sum(known["size"] for known in wanted.values()))
                folder = cache.folder(key)
                self._download(name, marker, wanted, folder)
        return folder

    def _download(self, name: str, marker: Marker, wanted: Contents, folder: Path) -> None:
        where = self._below(name, marker.folder)
        if download(where, wanted, folder):
            # Bits can flip on the way, too: what is damaged in the store is so at the second look.
            wanted = {file: known for file, known in wanted.items() if difference(str(folder / file), known)}
            if problems := download(where, wanted, folder):
                raise ValueError(f"artefact `{name}` is damaged: {'; '.join(problems)}. {self._mend(name)}")

    def damage(self, name: str) -> list[str]:
        """What is wrong with an artefact; every file is fetched anew.

        Raises:
            FileNotFoundError: if there is no such artefact.
        """
        try:
            marker = self._marker(name)
        except ValueError as error:
            return [str(error)]
        problems: list[str] = []
        for file, known in marker.files.items():  # one at a time, to need little room
            with tempfile.TemporaryDirectory(prefix="slimvit-verify-") as folder:
                problems += download(self._below(name, marker.folder), {file: known}, Path(folder))
        return problems

    def names(self, prefix: str) -> Iterator[str]:
        """Names of all committed artefacts below a prefix (whole parts), sorted."""
        start = self._address.below(*parts_of(prefix)) if prefix.strip("/") else self._address.below()
        keys = (str(found["Key"]) for found in objects(self._address, start))
        cut = len(self._address.below())
        names = (key[cut:].removesuffix(f"/{MARKER}") for key in keys if key.endswith(f"/{MARKER}"))
        return iter(sorted(name for name in names if not name.startswith(".")))

    def inventory(self) -> Inventory:
        """Everything that is there, with sizes: one listing, and the marker of each artefact."""
        cut, present = len(self._address.below()), self._now()
        found = [
            (str(each["Key"])[cut:], int(each["Size"]), max(0.0, present - each["LastModified"].timestamp()))
            for each in objects(self._address, self._address.below())
        ]
        names = [path.rpartition("/")[0] for path, _, _ in found if path.endswith(f"/{MARKER}")]
        with ThreadPoolExecutor(_MARKERS_AT_ONCE) as threads:
            commits = dict(zip(names, threads.map(self._commit_of, names), strict=True))
        artefacts: dict[str, Kept] = {}
        leftovers: dict[str, Kept] = {}
        for path, size, age_s in found:
            # Programs that see folders in keys, like pyarrow, leave empty objects in place of them.
            if path.startswith((f"{_LEASES}/", f"{_PROBE}/")) or path in ("", f"{_SCRATCH}/"):
                continue
            place, whole = _owner(path, commits)
            group = artefacts if whole else leftovers
            known = group.get(place, Kept(place, 0, age_s))
            group[place] = Kept(place, known.size + size, min(known.age_s, age_s))
        return Inventory(tuple(artefacts[n] for n in sorted(artefacts)), tuple(leftovers[n] for n in sorted(leftovers)))

    def _commit_of(self, name: str) -> str:
        try:
            return self._marker(name).folder
        except (FileNotFoundError, ValueError):  # gone meanwhile, or damaged: `verify` says so
            return ""

    def scratch(self) -> str:
        """An address below the prefix, in the form that Ray and pyarrow read."""
        address = f"{self._address.plain}/{_SCRATCH}/{uuid.uuid4().hex}"
        endpoint = self._address.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not endpoint:
            return address
        scheme, _, host = endpoint.partition("://")
        return f"{address}?endpoint_override={host}&scheme={scheme}"

    def discard(self, leftover: str) -> None:
        """Remove a scratch folder, or one of the inventory's leftovers. Missing is fine."""
        path = leftover.partition("?")[0].removeprefix(f"{self._address.plain}/")
        assert path.strip("/"), "the store is no leftover"
        assert "://" not in path, "a leftover lies in the store"
        self._delete_below(self._address.below(path))

    def free_bytes(self) -> None:
        """A bucket has no limit."""
        return

    def delete(self, name: str) -> None:
        """Remove an artefact, marker first. Missing is fine."""
        parts_of(name)
        with explained("delete from", self._address):
            self._client().delete_object(Bucket=self._address.bucket, Key=self._marker_key(name))
        self._delete_below(self._address.below(name))
        self._cache().drop(self._cache_key(name))

    def register(self) -> S3Register:
        """Leases, below the prefix."""
        return S3Register(self._below(_LEASES))

    def _client(self) -> Any:
        return client(self._address)

    def _cache(self) -> Cache:
        return Cache(cache_folder() / "artefacts")

    def _cache_key(self, name: str) -> str:
        return f"{self.location} {'/'.join(parts_of(name))}"

    def _below(self, *parts: str) -> Address:
        return Address(self._address.bucket, self._address.key(*parts), self._address.endpoint)

    def _marker_key(self, name: str) -> str:
        return self._address.key(*parts_of(name), MARKER)

    def _marker(self, name: str) -> Marker:
        with explained("read", self._address):
            try:
                found = self._client().get_object(Bucket=self._address.bucket, Key=self._marker_key(name))
                text = found["Body"].read()
            except ClientError as error:
                if absent(error):
                    raise FileNotFoundError(f"the store {self.location} has no artefact `{name}`") from None
                raise
        try:
            return Marker.decode(text)
        except ValueError as error:
            raise ValueError(
                f"artefact `{name}` is damaged: its marker cannot be read ({error!r}). {self._mend(name)}"
            ) from error

    def _write_marker(self, name: str, marker: Marker) -> bool:
        """False if the name is committed already, by somebody else."""
        with explained("write to", self._address):
            try:
                self._client().put_object(
                    Bucket=self._address.bucket,
                    Key=self._marker_key(name),
                    Body=marker.encode().encode(),
                    IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                )
                return True
            except ClientError as error:
                if not raced(error):
                    raise
        # An answer that was lost on the way, and the write tried again, looks like a rival.
        return self._marker(name) == marker

    def _same_or_refuse(self, name: str, contents: Contents, folder: Path) -> None:
        if not same(self._marker(name).files, contents, folder):
            raise FileExistsError(
                f"artefact `{name}` is already in {self.location} with other content. Artefacts never change: delete "
                "it first if it is wrong"
            )
        shutil.rmtree(folder)

    def _delete_below(self, start: str) -> None:
        keys = [{"Key": found["Key"]} for found in objects(self._address, start)]
        with explained("delete from", self._address):
            for first in range(0, len(keys), _DELETED_AT_ONCE):
                batch = {"Objects": keys[first : first + _DELETED_AT_ONCE], "Quiet": True}
                answer = self._client().delete_objects(Bucket=self._address.bucket, Delete=batch)
                if errors := answer.get("Errors"):
                    raise ClientError({"Error": errors[0]}, "DeleteObjects")

    def _abort_uploads(self) -> None:
        """Abort what killed writers left half uploaded: it is not listed, and paid for."""
        with explained("list the unfinished uploads of", self._address):
            try:
                pages = self._client().get_paginator("list_multipart_uploads")
                for page in pages.paginate(Bucket=self._address.bucket, Prefix=self._address.below()):
                    for found in page.get("Uploads", ()):
                        if now(page) - found["Initiated"].timestamp() > ABANDONED_S:
                            self._client().abort_multipart_upload(
                                Bucket=self._address.bucket, Key=found["Key"], UploadId=found["UploadId"]
                            )
            except ClientError as error:
                # Tidiness is no reason to refuse a run: without the permission, the bucket's own rule has to do it.
                if code_of(error) not in ("AccessDenied", "NotImplemented", "NoSuchUpload", "501"):
                    raise

    def _now(self) -> float:
        with explained("read", self._address):
            return now(self._client().list_objects_v2(Bucket=self._address.bucket, MaxKeys=1))

    def _mend(self, name: str) -> str:
        return f"Delete it (`slimvit store delete {name} --store '{self.location}'`); `slimvit run` computes it anew"


def _owner(path: str, commits: dict[str, str]) -> tuple[str, bool]:
    """Which artefact an object belongs to, and whether its marker names it; of a leftover, the folder to discard.

    Args:
        path: of the object, below the store's prefix.
        commits: name of each artefact → the commit that its marker names.
    """
    parts = path.split("/")
    if parts[0] == _SCRATCH:
        return "/".join(parts[:2]), False
    for depth in range(1, len(parts)):
        name = "/".join(parts[:depth])
        if name in commits:
            if parts[depth:] == [MARKER] or parts[depth] == commits[name]:
                return name, True
            return "/".join(parts[: depth + 1]), False
    return "/".join(parts[:-1]), False
