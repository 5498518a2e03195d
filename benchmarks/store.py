"""GiB/s of a checkpoint into the store and of a verified read, against `cp` on a disk and plain boto3 on S3.

Each sample does the store's work and its reference one after the other, first the one, then the other in turn, on the
same number of bytes; a ratio is the reference's time over the store's, above 1 where the store is quicker.

**On a disk**, both sides of a write end durable, with `fsync` of every file and folder within the time:

* `write`: files written from memory, then committed (hashed, flushed, marker, renamed); against `cp` of such files and
  `fsync`. What `cp` reads was flushed before, so that each side flushes its own bytes and nothing else.
* `commit`: the commit alone, of files that were just written and not yet flushed; against the same `cp` and `fsync`.
* `commit_against_cp_unflushed`: the same against `cp` alone, which then leaves its copy in memory.
* `read_warm`, `read_cold`: a fetch, every digest compared, of files in the page cache or not; against `cp`, which makes
  a copy and flushes nothing. A fetch from a disk hands out the store's own files, so it writes none.

**On S3** the server is moto's, in a process of its own on this machine, which keeps objects in memory: the ratio says
what digests, marker and cache cost beside the transfer, not how fast S3 is. boto3 moves the same bytes with the same
part size and concurrency. Nothing is flushed on either side.

    python -m benchmarks.store --mib 512 --s3-mib 256 --samples 9
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from cluster.cache import FOLDER_VARIABLE
from cluster.connect import usable_cpus
from cluster.local import LocalStore
from cluster.s3 import S3Store
from cluster.s3_client import client, transfer_config
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS, s3_server

WANTED = 0.9
Seconds = dict[str, list[float]]


class Times:
    """Seconds of each side of each comparison."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add what this block takes."""
        began = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def compared(self, size: int, pairs: dict[str, tuple[str, str]]) -> dict[str, object]:
        """Speeds, and the ratio with its quartiles, of every pair (store's side, reference's side)."""
        found: dict[str, object] = {}
        for name, (store, reference) in pairs.items():
            ratios = [b / a for a, b in zip(self.seconds[store], self.seconds[reference], strict=True)]
            found[name] = {
                "gib_per_s": size / statistics.median(self.seconds[store]) / 2**30,
                "reference_gib_per_s": size / statistics.median(self.seconds[reference]) / 2**30,
                "ratio": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
                "ratios": ratios,
            }
        return found


def checkpoint(folder: Path, size: int) -> Path:
    """A checkpoint's files: one large, one small."""
    folder.mkdir()
    with (folder / "state.safetensors").open("wb") as file:
        for _ in range(size >> 20):
            file.write(_BLOCK)
    (folder / "state.json").write_text("{}" * 2_000, encoding="utf-8")
    return folder


_BLOCK = os.urandom(1 << 20)


def in_turn(turn: int, *sides: Callable[[], None]) -> None:
    """Each side once, in the order A B, B A, …"""
    for side in sides[:: 1 if turn % 2 else -1]:
        side()


def flush(folder: Path) -> None:
    """As a program that copies by itself would: every file, then the folder."""
    for path in (*folder.iterdir(), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def cool(folder: Path) -> None:
    """Out of the page cache."""
    flush(folder)
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy(source: str | Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)


def on_disk(base: Path, size: int, samples: int) -> dict[str, object]:
    store, times = LocalStore(base / "store"), Times()
    store.prepare()
    plain = checkpoint(base / "plain", size)
    flush(plain)

    for turn in range(samples + 1):
        name = f"progress/bench/{turn}"
        if turn == 1:  # the first one warms up
            times = Times()
        now = times

        def committed(now: Times = now, name: str = name) -> None:
            with now.of("store write"):
                source = checkpoint(base / "source", size)
                with now.of("store commit"):
                    store.commit(name, source)

        def copied(now: Times = now) -> None:
            with now.of("cp and fsync"):
                with now.of("cp"):
                    copy(plain, base / "copy")
                flush(base / "copy")
            shutil.rmtree(base / "copy")

        def fetched(now: Times = now, name: str = name) -> None:
            with now.of("fetch warm"):
                store.fetch(name)

        def copied_back(now: Times = now, name: str = name) -> None:
            with now.of("cp warm"):
                copy(store.place(name), base / "back")
            shutil.rmtree(base / "back")

        def fetched_cold(now: Times = now, name: str = name) -> None:
            cool(Path(store.place(name)))
            with now.of("fetch cold"):
                store.fetch(name)

        def copied_cold(now: Times = now, name: str = name) -> None:
            cool(Path(store.place(name)))
            with now.of("cp cold"):
                copy(store.place(name), base / "back")
            shutil.rmtree(base / "back")

        in_turn(turn, committed, copied)
        in_turn(turn, fetched, copied_back)
        in_turn(turn, fetched_cold, copied_cold)
        store.delete(name)
    pairs = {
        "write": ("store write", "cp and fsync"),
        "commit": ("store commit", "cp and fsync"),
        "commit_against_cp_unflushed": ("store commit", "cp"),
        "read_warm": ("fetch warm", "cp warm"),
        "read_cold": ("fetch cold", "cp cold"),
    }
    return times.compared(size, pairs)


def on_s3(base: Path, size: int, samples: int) -> dict[str, object]:
    os.environ.update(CREDENTIALS | {FOLDER_VARIABLE: str(base / "cache")})
    times, plain = Times(), checkpoint(base / "plain-s3", size)
    files = [path.name for path in plain.iterdir()]
    with s3_server() as endpoint:
        address = Address("bench", "store", endpoint)
        s3 = client(address)
        s3.create_bucket(Bucket=address.bucket)
        store = S3Store(address)
        for turn in range(samples + 1):
            name = f"progress/bench/{turn}"
            if turn == 1:
                times = Times()
            now = times

            def committed(now: Times = now, name: str = name) -> None:
                source = checkpoint(base / "source", size)
                with now.of("commit"):
                    store.commit(name, source)
                shutil.rmtree(base / "cache")

            def sent(now: Times = now) -> None:
                with now.of("upload"):
                    for file in files:
                        s3.upload_file(str(plain / file), "bench", file, Config=transfer_config())

            def fetched(now: Times = now, name: str = name) -> None:
                with now.of("fetch"):
                    store.fetch(name)
                shutil.rmtree(base / "cache")

            def got(now: Times = now) -> None:
                (base / "got").mkdir()
                with now.of("download"):
                    for file in files:
                        s3.download_file("bench", file, str(base / "got" / file), Config=transfer_config())
                shutil.rmtree(base / "got")

            in_turn(turn, committed, sent)
            in_turn(turn, fetched, got)
            store.delete(name)
    return times.compared(size, {"write": ("commit", "upload"), "read": ("fetch", "download")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="of a checkpoint on the disk")
    parser.add_argument("--s3-mib", type=int, default=128, help="of a checkpoint in the bucket")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    arguments = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as base:
        disk = on_disk(Path(base), arguments.mib << 20, arguments.samples)
        s3 = on_s3(Path(base), arguments.s3_mib << 20, arguments.samples)
    conditions = {"mib": arguments.mib, "s3_mib": arguments.s3_mib, "samples": arguments.samples}
    load.append(os.getloadavg()[0])  # hashing side by side needs cores that nobody else has
    conditions |= {
        "cpus": usable_cpus(),
        "load_before_and_after": load,
        "boto3": boto3.__version__,
        "python": platform.python_version(),
    }
    result = {"benchmark": "store", "wanted": WANTED, "disk": disk, "s3": s3, "conditions": conditions}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
