"""Write a teacher's answers: every training image as it looks in every epoch, shard by shard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import DataError, StoreError
from orchestrator.planning.plan import StoreStage
from orchestrator.planning.stored import bytes_to_write, num_answers, too_large
from orchestrator.training.answers import Answers, compress
from orchestrator.training.data import Batch, Loader, check_classes, training_loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.finished import result_of
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext
from orchestrator.training.mixing import Mixing
from orchestrator.training.network import teacher_alone
from orchestrator.training.order import Key
from orchestrator.training.precision import Precision
from orchestrator.training.seeding import determinism
from orchestrator.training.settle import settle
from orchestrator.training.shards import (
    Shard,
    artefact,
    batches,
    commit_shard,
    num_batches,
    seconds_of,
    shards_of_epoch,
)
from orchestrator.training.sources import Images, open_images
from orchestrator.training.stage import environment_of
from orchestrator.training.stored_teacher import MANIFEST

SECONDS_BETWEEN_REPORTS = 0.5


def run_store_stage(stage: StoreStage, context: WorkerContext, io: StageIO) -> dict[str, Any]:
    """Write all shards that are missing, then commit `stages/<digest>`; every worker of the group calls it.

    Workers take turns at the shards. A shard is committed whole: what a kill loses is the
    shards under way, and another number of workers may go on.

    Returns:
        The content of `result.json`.

    Raises:
        StageInterrupted: after `io.should_stop()` or past the deadline.
        SlimvitError: for everything that a user can mend (data, store, too little room).
    """
    name = f"stages/{stage.digest}"
    if io.store.committed(name):
        return result_of(io.store, name)
    needed, free = bytes_to_write(stage, io.store), io.store.free_bytes()
    if free is not None and needed > free:
        raise StoreError(too_large([stage], needed, free, "the artefact store's disk"))
    with determinism(torch.device(context.device), context.threads):
        return _Writer(stage, context, io).run()


@dataclass(frozen=True)
class _Keys:
    """Keys of all batches of some shards; a batch sampler."""

    stage: StoreStage
    shards: Sequence[Shard]
    num_images: int

    def __iter__(self) -> Iterator[list[Key]]:
        return (keys for shard in self.shards for _, keys in batches(self.stage, shard, self.num_images))


class _Writer:
    """One worker."""

    def __init__(self, stage: StoreStage, context: WorkerContext, io: StageIO) -> None:
        self.began = time.monotonic()
        self.stage, self.context, self.io = stage, context, io
        self.device = torch.device(context.device)
        self.group = WorkerGroup(context)
        self.precision = Precision(stage.training.precision, self.device)
        self.mixing = Mixing(stage.training, stage.num_classes, stage.seed)
        self.images = _open(stage)
        teacher = teacher_alone(stage.teacher, io.store, stage.data).to(self.device)
        self.teacher = torch.compile(teacher) if stage.training.compile else teacher
        self.shards = [shard for epoch in range(stage.epochs) for shard in shards_of_epoch(stage, epoch)]
        self.total = sum(num_batches(stage, shard) for shard in self.shards)
        self.done = 0
        """Batches in finished shards, of `total`."""

    def run(self) -> dict[str, Any]:
        """Write what is missing until nothing is, then commit."""
        setup_s = time.monotonic() - self.began
        while True:
            missing = [shard for shard in self.shards if not self.io.store.committed(artefact(self.stage, shard))]
            # Nobody writes before all have looked. Where another run writes too, the lists may differ.
            longest = int(self.group.max([float(len(missing))])[0])
            if not longest:
                return self._finish(setup_s)
            self._write(missing, turns=-(-longest // self.group.world_size))

    def _write(self, missing: Sequence[Shard], turns: int) -> None:
        """In every turn each worker writes a shard, and then they meet: one that hurried ahead for hours would find
        that the process group has given up waiting.

        Raises:
            StageInterrupted: if any worker is to stop.
        """
        rank, world_size = self.group.rank, self.group.world_size
        own = missing[rank::world_size]
        shown = iter(self._loader(own))
        self.done = self.total - sum(num_batches(self.stage, shard) for shard in missing)
        self._report("resumed" if self.done else "start", missing[0].epoch if missing else 0, {})
        for turn in range(turns):
            began = time.perf_counter()
            why = self._write_shard(own[turn], shown) if turn < len(own) else None
            if self.group.max([float(why is not None)])[0]:
                why = why or "another worker stopped"
                raise StageInterrupted(f"`{self.stage.label}` stopped, its finished shards are kept: {why}")
            written, left = missing[turn * world_size :][:world_size], missing[(turn + 1) * world_size :]
            self.done += sum(num_batches(self.stage, shard) for shard in written)
            finished = left[0].epoch if left else self.stage.epochs
            if written and finished > written[0].epoch:
                images = sum(shard.size for shard in written)
                self._report("epoch", finished, {"images_per_s": images / (time.perf_counter() - began)})

    def _loader(self, shards: Sequence[Shard]) -> Loader:
        keys = _Keys(self.stage, shards, len(self.images))
        stage = self.stage
        return training_loader(self.images, stage.data, stage.training.augmentation, keys, stage.seed, self.device)

    def _write_shard(self, shard: Shard, shown: Iterator[Batch]) -> str | None:
        """Write a shard; says why it stopped before the end, if it did."""
        began = reported = time.perf_counter()
        ids: list[int] = []
        parts: list[Answers] = []
        for step, keys in batches(self.stage, shard, len(self.images)):
            parts.append(self._answer(*next(shown), step))
            ids += [image for _, image in keys]
            if why := self._stop():
                return why
            now = time.perf_counter()
            if now - reported >= SECONDS_BETWEEN_REPORTS:
                speed = len(ids) * self.group.world_size / (now - began)
                self._report("step", shard.epoch, {"images_per_s": speed}, len(parts) * self.group.world_size)
                reported = now
        answers = Answers(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        images = torch.tensor(ids, dtype=torch.int32)
        folder = self.io.scratch / "shard"
        commit_shard(self.io.store, self.stage, shard, images, answers, time.perf_counter() - began, folder)
        return None

    def _answer(self, pixels: Tensor, labels: Tensor, step: int) -> Answers:
        """The teacher's answers to a batch, as it would give them in training."""
        pixels, _ = self.mixing(pixels, labels, step)
        with torch.no_grad(), self.precision.autocast():
            out = self.teacher(pixels)
        return compress(self.precision.full(out).logits, self.stage.top_k)

    def _stop(self) -> str | None:
        """Every worker asks for itself; all are told at the same time, and meet after the shard."""
        deadline = self.context.deadline_s
        if deadline is not None and time.monotonic() - self.began > deadline:
            return f"its deadline of {deadline:g} s has passed"
        return "a stop was asked for" if self.io.should_stop() else None

    def _report(self, kind: Any, epoch: int, values: dict[str, float], under_way: int = 0) -> None:
        if self.group.is_first:
            step = min(self.done + under_way, self.total)
            self.io.report(Progress(kind, self.stage.digest, epoch, step, self.total, values))

    def _finish(self, setup_s: float) -> dict[str, Any]:
        """Commit the manifest, which makes the shards a store."""
        stage, result = self.stage, dict[str, Any]()
        if self.group.is_first:
            device_s = sum(seconds_of(self.io.store, stage, shard) for shard in self.shards)
            seconds = device_s / self.group.world_size + setup_s
            images = stage.num_answers * stage.epochs
            result = {
                "metrics": {},
                "seconds": seconds,
                "device_hours": (device_s + setup_s * self.group.world_size) / 3600,
                "teacher_seconds": seconds,
                "images_per_s": images * self.group.world_size / device_s if device_s else None,
                "epochs": stage.epochs,
                "images": images,
                "shards": len(self.shards),
                "bytes": stage.num_bytes,
                "environment": environment_of(self.context),
            }
            folder = self.io.scratch / "artefact"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / MANIFEST).write_text(stage.model_dump_json(indent=1), encoding="utf-8")
            result = settle(self.io.store, f"stages/{stage.digest}", folder, result)
        self.group.wait()
        return result


def _open(stage: StoreStage) -> Images:
    """The training images, if they are those that were planned for."""
    images = open_images(stage.data, "train")
    check_classes(images, stage.num_classes)
    if num_answers(stage.training, len(images)) != stage.num_answers:
        raise DataError(
            f"there are {len(images)} training images, and `{stage.label}` was planned for {stage.num_answers} answers "
            "an epoch: the images have changed since. Plan again"
        )
    return images
