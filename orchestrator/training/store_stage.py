"""Write a teacher's answers: every training image as it looks in every epoch, shard by shard."""

from __future__ import annotations

import json
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
from orchestrator.training.data import check_classes, training_loader
from orchestrator.training.distributed import WorkerGroup
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

    Workers share the shards, and need each other only at the end. A shard is committed whole: what a kill loses is the
    shards under way, and another number of workers may go on.

    Returns:
        The content of `result.json`.

    Raises:
        StageInterrupted: after `io.should_stop()` or past the deadline.
        SlimvitError: for everything that a user can mend (data, store, too little room).
    """
    name = f"stages/{stage.digest}"
    if io.store.committed(name):
        result: dict[str, Any] = json.loads((io.store.fetch(name) / "result.json").read_text(encoding="utf-8"))
        return result
    needed, free = bytes_to_write(stage, io.store), io.store.free_bytes()
    if needed > free:
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

    def run(self) -> dict[str, Any]:
        """Round after round until nothing is missing; a second round only where a shard was deleted meanwhile."""
        kind: Any = "start"
        setup_s = time.monotonic() - self.began
        while True:
            missing = [shard for shard in self.shards if not self.io.store.committed(artefact(self.stage, shard))]
            # Nobody writes before all have looked, so that all share the same list.
            if not self.group.max([float(len(missing))])[0]:
                break
            done = self.total - sum(num_batches(self.stage, shard) for shard in missing)
            self._report("resumed" if done else kind, missing[0].epoch, done, {})
            why = self._write(missing[self.group.rank :: self.group.world_size], done)
            if self.group.max([float(why is not None)])[0]:
                why = why or "another worker stopped"
                raise StageInterrupted(f"`{self.stage.label}` stopped, its finished shards are kept: {why}")
        return self._finish(setup_s)

    def _write(self, shards: Sequence[Shard], done: int) -> str | None:
        """Write these shards; says why it stopped before the end, if it did."""
        stage = self.stage
        loader = training_loader(
            self.images,
            stage.data,
            stage.training.augmentation,
            _Keys(stage, shards, len(self.images)),
            stage.seed,
            self.device,
        )
        shown = iter(loader)
        clock = reported = time.perf_counter()
        own = since_report = 0
        for at, shard in enumerate(shards):
            ids: list[int] = []
            parts: list[Answers] = []
            for step, keys in batches(stage, shard, len(self.images)):
                parts.append(self._answer(*next(shown), step))
                ids += [image for _, image in keys]
                own, since_report = own + 1, since_report + len(keys)
                if why := self._stop():
                    return why
                now = time.perf_counter()
                if now - reported >= SECONDS_BETWEEN_REPORTS:
                    speed = since_report * self.group.world_size / (now - reported)
                    self._report("step", shard.epoch, done + own * self.group.world_size, {"images_per_s": speed})
                    reported, since_report = now, 0
            answers = Answers(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
            now = time.perf_counter()
            commit_shard(
                self.io.store,
                stage,
                shard,
                torch.tensor(ids, dtype=torch.int32),
                answers,
                now - clock,
                self.io.scratch / "shard",
            )
            if at + 1 == len(shards) or shards[at + 1].epoch != shard.epoch:
                speed = len(ids) * self.group.world_size / (now - clock)
                self._report("epoch", shard.epoch + 1, done + own * self.group.world_size, {"images_per_s": speed})
            clock = now
        return None

    def _answer(self, pixels: Tensor, labels: Tensor, step: int) -> Answers:
        """The teacher's answers to a batch, as it would give them in training."""
        pixels, _ = self.mixing(pixels, labels, step)
        with torch.no_grad(), self.precision.autocast():
            out = self.teacher(pixels)
        return compress(self.precision.full(out).logits, self.stage.top_k)

    def _stop(self) -> str | None:
        """Every worker decides for itself: they are told at the same time, and none waits for another."""
        deadline = self.context.deadline_s
        if deadline is not None and time.monotonic() - self.began > deadline:
            return f"its deadline of {deadline:g} s has passed"
        return "a stop was asked for" if self.io.should_stop() else None

    def _report(self, kind: Any, epoch: int, step: int, values: dict[str, float]) -> None:
        if self.group.is_first:
            self.io.report(Progress(kind, self.stage.digest, epoch, min(step, self.total), self.total, values))

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
