"""A store of answers as files: which shard holds which images, written and read.

A shard is an artefact of its own, `answers/<digest>/<epoch>-<part>`, one safetensors file, so that it is there whole or
not at all, and several workers can write at the same time. `stages/<digest>`, committed when all shards are there,
holds the manifest. Rows are found by image id.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cluster.storage import ArtifactSource, ArtifactStore
from orchestrator.errors import StoreError
from orchestrator.planning.plan import StoreStage
from orchestrator.planning.stored import answers_folder, images_per_shard, index_bytes, mixes
from orchestrator.training.answers import Answers
from orchestrator.training.order import Key, TrainOrder, accumulation_steps

FILE, RECORD = "answers.safetensors", "shard.json"
INDEX = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}
"""Bytes → type of a class in the file."""


@dataclass(frozen=True)
class Shard:
    """Part of an epoch's answers."""

    epoch: int
    part: int
    first: int
    """Its first answer, counted within the epoch: by image id, or, mixed, in the order of the epoch."""
    size: int
    """Answers."""


def shards_of_epoch(stage: StoreStage, epoch: int) -> list[Shard]:
    """All shards of an epoch, in order; the same for any number of workers."""
    size = images_per_shard(stage.training)
    return [
        Shard(epoch, part, first, min(size, stage.num_answers - first))
        for part, first in enumerate(range(0, stage.num_answers, size))
    ]


def batches(stage: StoreStage, shard: Shard, num_images: int) -> Iterator[tuple[int, list[Key]]]:
    """(Step, images) of every forward pass for a shard.

    Where images are mixed, these are the micro-batches of one worker, in which each image has its partner. Elsewhere an
    image looks the same in any company, and images go by id; the step then means nothing.
    """
    training = stage.training
    if not mixes(training):
        size, end = training.micro_batch or training.batch_size, shard.first + shard.size
        for first in range(shard.first, end, size):
            yield 0, [(shard.epoch, i) for i in range(first, min(first + size, end))]
        return
    accumulation = accumulation_steps(training.batch_size, training.micro_batch, 1, mixing=True)
    order = TrainOrder(num_images, training.batch_size, accumulation, stage.epochs, stage.seed)
    first_step = shard.epoch * order.steps_per_epoch + shard.first // training.batch_size
    steps = shard.size // training.batch_size
    order = TrainOrder(num_images, training.batch_size, accumulation, stage.epochs, stage.seed, start=first_step)
    for k, keys in enumerate(islice(order, steps * accumulation)):
        yield first_step + k // accumulation, keys


def num_batches(stage: StoreStage, shard: Shard) -> int:
    """How many `batches` yields."""
    size = stage.training.micro_batch or stage.training.batch_size
    return -(-shard.size // size)


def commit_shard(
    store: ArtifactStore,
    stage: StoreStage,
    shard: Shard,
    images: Tensor,
    answers: Answers,
    seconds: float,
    folder: Path,
) -> None:
    """Write a shard into the store; if another run was faster, its shard stands.

    Args:
        images: ids [N] (int32) of the images.
        answers: of the same N images.
        seconds: that they took.
        folder: is made, and gone afterwards.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    classes = answers.classes.cpu().to(INDEX[index_bytes(stage.num_classes)])
    tensors = {"image": images, **answers._replace(classes=classes)._asdict()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / FILE)
    (folder / RECORD).write_text(json.dumps({"images": shard.size, "seconds": seconds}), encoding="utf-8")
    with suppress(FileExistsError):  # the numbers of two runs may differ in their last bits, and their times do
        store.commit(artefact(stage, shard), folder)


def artefact(stage: StoreStage, shard: Shard) -> str:
    """Name of a shard in the store."""
    return f"{answers_folder(stage.digest)}/{shard.epoch:05d}-{shard.part:05d}"


def seconds_of(store: ArtifactSource, stage: StoreStage, shard: Shard) -> float:
    """What a shard took, from its own record."""
    try:
        text = (store.fetch(artefact(stage, shard), [RECORD]) / RECORD).read_text(encoding="utf-8")
        return float(json.loads(text)["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"a shard of `{stage.label}` cannot be read: {error}; {_mend(stage)}") from error


class Epoch:
    """The answers of one epoch, memory-mapped: the system reads what is looked up, and may forget it again.

    Args:
        stage: whose answers they are.
        epoch: which.
        store: where the shards are; each one's digest is verified first.

    Raises:
        StoreError: if a shard is missing or damaged, or not every image that it should hold is there once.
    """

    def __init__(self, stage: StoreStage, epoch: int, store: ArtifactSource) -> None:
        self.number = epoch
        shards = shards_of_epoch(stage, epoch)
        self._tensors = [_open(store, artefact(stage, shard), stage) for shard in shards]
        ids = np.concatenate([tensors["image"] for tensors in self._tensors])
        self._starts = np.cumsum([0, *(len(tensors["image"]) for tensors in self._tensors)])
        if len(np.unique(ids)) != stage.num_answers:
            raise StoreError(
                f"the answers of `{stage.label}` in epoch {epoch} are not to {stage.num_answers} images; {_mend(stage)}"
            )
        self._place = np.full(ids.max() + 1, -1, dtype=np.int64)
        """Image id → position among all answers of the epoch."""
        self._place[ids] = np.arange(len(ids))

    def look_up(self, images: list[int]) -> Answers:
        """The answers to these images, in this order.

        Raises:
            StoreError: if one of them has no answer.
        """
        absent = [i for i in images if i >= len(self._place) or self._place[i] < 0]
        if absent:
            raise StoreError(f"the stored teacher has no answer to image {absent[0]} in epoch {self.number}")
        place = self._place[images]
        shard = np.searchsorted(self._starts, place, side="right") - 1
        row, columns = place - self._starts[shard], []
        for name, kind in (("classes", np.int64), ("log_probability", np.float16), ("log_rest", np.float16)):
            first = self._tensors[0][name]
            column = np.empty((len(images), *first.shape[1:]), dtype=kind)
            for s in np.unique(shard):
                own = shard == s
                column[own] = self._tensors[s][name][row[own]]
            columns.append(torch.from_numpy(column))
        return Answers(*columns)


def _open(store: ArtifactSource, name: str, stage: StoreStage) -> dict[str, np.ndarray]:
    """The tensors of a shard, not yet read."""
    try:
        with safe_open(store.fetch(name) / FILE, framework="pt") as file:
            return {key: file.get_tensor(key).numpy() for key in ("image", *Answers._fields)}
    except (FileNotFoundError, ValueError, SafetensorError) as error:
        raise StoreError(f"the answers of `{stage.label}` cannot be read: {error}; {_mend(stage)}") from error


def _mend(stage: StoreStage) -> str:
    return (
        f"delete that shard and the folder `stages/{stage.digest}` in the store, and run again: only what is missing "
        "is written anew"
    )
