"""What S3 says, as messages that tell what to do: from a real HTTP endpoint, none of them with a secret in it."""

from __future__ import annotations

import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.lease import Record
from cluster.process import Process
from cluster.s3 import S3Store
from cluster.s3_client import _client, client, objects
from cluster.storage import StoreUnavailable
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS
from tests.cluster.test_store import folder


class Answer(BaseHTTPRequestHandler):
    """One S3 error for every request, in S3's own XML (docs.aws.amazon.com, API reference, error responses)."""

    status, code, more, region = 200, "", "", ""
    asked: list[str]

    def answer(self) -> None:
        self.asked.append(self.command)
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = (
            f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{self.code}</Code><Message>said</Message>{self.more}"
            "<RequestId>4442587FB7D0A2F9</RequestId></Error>"
        ).encode()
        if not self.code:
            body = b"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult></ListBucketResult>"
        self.send_response(self.status)
        if self.region:
            self.send_header("x-amz-bucket-region", self.region)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def answering(
    status: int, code: str, more: str = "", region: str = "", kind: type[Answer] = Answer
) -> Iterator[tuple[S3Store, list[str]]]:
    asked: list[str] = []
    told = {"status": status, "code": code, "more": more, "region": region, "asked": asked}
    handler = type("Own", (kind,), told)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield S3Store(Address("some-bucket", "runs", f"http://127.0.0.1:{server.server_port}")), asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


@pytest.mark.parametrize(
    ("status", "code", "more", "message"),
    [
        (404, "NoSuchBucket", "", r"no bucket `some-bucket`.*aws s3 mb s3://some-bucket"),
        (
            400,
            "AuthorizationHeaderMalformed",
            "<Region>eu-central-1</Region>",
            r"lies in another region.*AWS_DEFAULT_REGION=eu-central-1",
        ),
        (403, "AccessDenied", "", r"no permission for `s3:ListBucket`.*arn:aws:s3:::some-bucket"),
        (
            403,
            "RequestTimeTooSkewed",
            "<RequestTime>20260101T000000Z</RequestTime><ServerTime>2026-01-01T01:00:00Z</ServerTime>",
            r"clock of this machine.*here 20260101T000000Z, there 2026-01-01T01:00:00Z.*timedatectl",
        ),
        (403, "InvalidAccessKeyId", "", r"not valid there \(InvalidAccessKeyId\).*AWS_PROFILE"),
        (403, "SignatureDoesNotMatch", "", r"not valid there \(SignatureDoesNotMatch\)"),
        (400, "ExpiredToken", "", r"have expired.*same command again"),
        (501, "NotImplemented", "", r"does not know what is asked of it.*conditional writes"),
        (503, "SlowDown", "", r"failed 2 times in a row \(SlowDown"),
        (500, "InternalError", "", r"failed 2 times in a row \(InternalError"),
    ],
)
def test_what_s3_says(status: int, code: str, more: str, message: str) -> None:
    with answering(status, code, more) as (store, asked), pytest.raises(StoreUnavailable, match=message) as caught:
        store.check()
    assert asked, "it was a real request"
    assert "s3://some-bucket/runs" in str(caught.value)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(("status", "code", "tries"), [(500, "InternalError", 2), (403, "AccessDenied", 1)])
def test_what_may_pass_is_tried_again_and_only_that(status: int, code: str, tries: int) -> None:
    with answering(status, code) as (store, asked), pytest.raises(StoreUnavailable):
        store.check()
    assert len(asked) == tries


class Elsewhere(Answer):
    """A bucket in eu-central-1, which takes requests that are signed for there; of others it does not say where to."""

    def answer(self) -> None:
        here = "/eu-central-1/s3/" in self.headers["Authorization"]
        self.status, self.code = (200, "") if here else (301, "PermanentRedirect")
        super().answer()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815


def test_the_way_out_of_another_region_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(0, "", kind=Elsewhere) as (store, _):
        with pytest.raises(StoreUnavailable, match=r"Set \w+ to the bucket's region") as caught:
            store.check()
        (variable,) = re.findall(r"Set (\w+) to the bucket's region", str(caught.value))
        monkeypatch.setenv(variable, "eu-central-1")
        _client.cache_clear()  # as in the next process
        store.check()
        _client.cache_clear()


def test_another_region() -> None:
    """botocore itself goes to the region that S3 names; this server sends it away there, too."""
    moved = answering(301, "PermanentRedirect", region="eu-central-1")
    with (
        moved as (store, asked),
        pytest.raises(StoreUnavailable, match=r"another region.*AWS_DEFAULT_REGION=eu-central-1"),
    ):
        store.check()
    assert len(asked) > 1


def test_a_redirect_to_nowhere() -> None:
    nowhere = answering(301, "PermanentRedirect")
    with (
        nowhere as (store, _),
        pytest.raises(StoreUnavailable, match=r"sends every request elsewhere.*AWS_DEFAULT_REGION"),
    ):
        store.check()


def test_the_permission_to_write() -> None:
    with (
        answering(403, "AccessDenied") as (store, _),
        pytest.raises(StoreUnavailable, match=r"cannot write the lease .*s3:PutObject"),
    ):
        store.register().write("stages/a", Record("me", Process.this(), 0.0, 1), None)


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = S3Store(Address("some-bucket", "", f"http://127.0.0.1:{port}"))
    with pytest.raises(StoreUnavailable, match=rf"`http://127.0.0.1:{port}` does not answer.*AWS_ENDPOINT_URL"):
        store.committed("stages/a")


def test_no_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    other = f"{endpoint}/{uuid.uuid4().hex}"  # its own client
    with pytest.raises(StoreUnavailable, match=r"no usable credentials.*AWS_ACCESS_KEY_ID"):
        S3Store(Address("some-bucket", "", other)).check()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreUnavailable, match=r"no usable credentials.*nobody"):
        S3Store(Address("some-bucket", "x", f"{other}2")).check()


def test_a_bucket_that_moto_does_not_have(address: Address) -> None:
    with pytest.raises(StoreUnavailable, match="there is no bucket `absent-bucket`"):
        S3Store(replace(address, bucket="absent-bucket")).check()


def test_an_endpoint_that_ignores_conditions_is_refused() -> None:
    with answering(200, "") as (store, _), pytest.raises(StoreUnavailable, match="conditional writes"):
        store.prepare()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket/x", "no place that slimvit knows"),
        ("s3://", "names no bucket"),
        ("s3://Bucket/x", "names no bucket"),
        ("s3://key:topsecret@bucket/x", "must not hold credentials"),
        ("s3://bucket/x?endpoint=http://key:topsecret@host", "must not hold credentials"),
        ("s3://bucket/x?region=eu", "only `\\?endpoint="),
        ("s3://bucket/x?endpoint=host:9000", "no endpoint"),
    ],
)
def test_addresses_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Address.parse(text)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/a/b", "s3://bucket/a?endpoint=http://127.0.0.1:9000"])
def test_addresses_read_back(text: str) -> None:
    assert str(Address.parse(text)) == text


def test_damage_in_the_bucket(address: Address, tmp_path: Path) -> None:
    store = S3Store(address)
    store.commit("stages/a", folder(tmp_path / "out", weights="w" * 100, result="r"))
    keys = [str(found["Key"]) for found in objects(address, address.below("stages/a"))]
    (weights,) = [key for key in keys if key.endswith("/weights")]
    assert store.damage("stages/a") == []
    client(address).put_object(Bucket=address.bucket, Key=weights, Body=b"w" * 99 + b"v")
    assert "has SHA-256" in store.damage("stages/a")[0], "the cache does not hide it"
    store._cache().drop(store._cache_key("stages/a"))
    assert (store.fetch("stages/a", ["result"]) / "result").read_text() == "r"
    with pytest.raises(ValueError, match=r"damaged.*slimvit store delete stages/a --store 's3://.*endpoint="):
        store.fetch("stages/a")
    client(address).delete_object(Bucket=address.bucket, Key=weights)
    with pytest.raises(ValueError, match="is missing"):
        store.fetch("stages/a")


def test_damage_in_the_cache_is_mended(address: Address, tmp_path: Path) -> None:
    store = S3Store(address)
    store.commit("stages/a", folder(tmp_path / "out", weights="w" * 100))
    cached = store.fetch("stages/a")
    (cached / "weights").write_text("w" * 99 + "v")
    assert (store.fetch("stages/a") / "weights").read_text() == "w" * 100


def test_a_partial_upload_is_no_artefact(address: Address, tmp_path: Path) -> None:
    store = S3Store(address)
    key = address.key("stages/a", "0123", "weights")
    client(address).put_object(Bucket=address.bucket, Key=key, Body=b"half")
    client(address).create_multipart_upload(Bucket=address.bucket, Key=key)
    assert not store.committed("stages/a")
    assert list(store.names("")) == []
    (leftover,) = store.inventory().leftovers
    assert (leftover.name, leftover.size) == ("stages/a/0123", 4)
    store.commit("stages/a", folder(tmp_path / "out", weights="whole"))
    assert (store.fetch("stages/a") / "weights").read_text() == "whole"
    store.discard(leftover.name)
    assert store.inventory().leftovers == ()
    assert (store.fetch("stages/a") / "weights").read_text() == "whole"
