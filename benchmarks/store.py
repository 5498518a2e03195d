"""GiB/s of a checkpoint into the store and of a verified read, against `cp` on a disk and plain boto3 on S3.

Each sample does the store's work and its reference one after the other, and the ratio is the median over samples. On
the disk both read warm files. A commit takes a folder over: the trainer has written the files, the store hashes them,
flushes them to the disk and renames; `cp` copies and does not flush, and `cp` with `sync` is shown beside it. A
verified read of the store hands out the folder itself, digests checked; `cp` makes a copy of it.

On S3 the server is moto's, in a process of its own on this machine: the ratio says what digests, marker and cache cost
beside the transfer, not how fast S3 is. boto3 moves the same bytes with the same part size and concurrency.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.cache import FOLDER_VARIABLE
from cluster.local import LocalStore
from cluster.s3 import S3Store
from cluster.s3_client import client, transfer_config
from cluster.storage import ArtifactStore
from specs.address import Address
from tests.cluster.s3_process import CREDENTIALS, s3_server


def seconds(action: Callable[..., object], *arguments: object, **options: object) -> float:
    began = time.perf_counter()
    action(*arguments, **options)
    return time.perf_counter() - began


def checkpoint(folder: Path, size: int) -> Path:
    """A checkpoint's files: one large, one small."""
    folder.mkdir()
    block = os.urandom(1 << 20)
    with (folder / "state.safetensors").open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    (folder / "state.json").write_text("{}" * 2_000, encoding="utf-8")
    return folder


def on_disk(base: Path, size: int, samples: int) -> dict[str, object]:
    store: ArtifactStore = LocalStore(base / "store")
    store.prepare()
    write, write_sync, read, speed_w, speed_r = [], [], [], [], []
    for i in range(samples):
        source = checkpoint(base / "source", size)
        copied = seconds(subprocess.run, ["cp", "-r", source, base / "copy"], check=True)
        flushed = copied + seconds(subprocess.run, ["sync", "-f", base / "copy"], check=True)
        shutil.rmtree(base / "copy")
        name = f"progress/bench/{i}"
        committed = seconds(store.commit, name, source)
        fetched = seconds(store.fetch, name)
        again = seconds(subprocess.run, ["cp", "-r", store.place(name), base / "copy"], check=True)
        shutil.rmtree(base / "copy")
        store.delete(name)
        write.append(copied / committed)
        write_sync.append(flushed / committed)
        read.append(again / fetched)
        speed_w.append(size / committed / 2**30)
        speed_r.append(size / fetched / 2**30)
    return {
        "write_gib_per_s": statistics.median(speed_w),
        "read_gib_per_s": statistics.median(speed_r),
        "write_over_cp": statistics.median(write),
        "write_over_cp_and_sync": statistics.median(write_sync),
        "read_over_cp": statistics.median(read),
    }


def on_s3(base: Path, size: int, samples: int) -> dict[str, object]:
    os.environ.update(CREDENTIALS | {FOLDER_VARIABLE: str(base / "cache")})
    write, read, speed_w, speed_r = [], [], [], []
    with s3_server() as endpoint:
        address = Address("bench", "store", endpoint)
        s3 = client(address)
        s3.create_bucket(Bucket=address.bucket)
        store = S3Store(address)
        for i in range(samples):
            source, name = checkpoint(base / "source", size), f"progress/bench/{i}"
            file = str(source / "state.safetensors")
            sent = seconds(s3.upload_file, file, "bench", "plain", Config=transfer_config())
            got = seconds(s3.download_file, "bench", "plain", str(base / "plain"), Config=transfer_config())
            s3.delete_object(Bucket="bench", Key="plain")
            committed = seconds(store.commit, name, source)
            shutil.rmtree(base / "cache")
            fetched = seconds(store.fetch, name)
            store.delete(name)
            write.append(sent / committed)
            read.append(got / fetched)
            speed_w.append(size / committed / 2**30)
            speed_r.append(size / fetched / 2**30)
    return {
        "write_gib_per_s": statistics.median(speed_w),
        "read_gib_per_s": statistics.median(speed_r),
        "write_over_boto3": statistics.median(write),
        "read_over_boto3": statistics.median(read),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as base:
        size = arguments.mib << 20
        result = {"benchmark": "store", "mib": arguments.mib, "samples": arguments.samples}
        result |= {"disk": on_disk(Path(base), size, arguments.samples)}
        result |= {"s3": on_s3(Path(base), size, arguments.samples)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
