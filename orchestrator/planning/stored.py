"""Stored teachers: what stored answers are bound to, and what room they need. Loads no torch.

An answer belongs to an image as it looks in one epoch. What it looks like is a function of a seed, the epoch, the
image and the augmentation (ADR 0007); where images are mixed, of the batch that it stands in, too. All stages that show
their students these same images share one store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from cluster.storage import ArtifactStore
from orchestrator.planning.digest import FORMAT, digest_of
from orchestrator.planning.networks import Network
from orchestrator.planning.plan import Plan, StoreStage
from specs.data import DataSpec
from specs.model import StoredSpec
from specs.training import TrainingSpec

STORE_VERSION = 1
"""Raised whenever the same teacher's answers are stored in another form; part of every store's digest."""
IMAGES_PER_SHARD = 32_768
"""At most so many answers in one file: what a kill loses, and what workers share the work by."""


def index_bytes(num_classes: int) -> int:
    """Bytes of the smallest unsigned integer that holds a class."""
    return 1 if num_classes <= 1 << 8 else 2 if num_classes <= 1 << 16 else 4


def answer_bytes(top_k: int, num_classes: int) -> int:
    """Bytes of one answer: K classes with a half-precision number each, one more for the rest, and the image's id."""
    return top_k * (index_bytes(num_classes) + 2) + 2 + 4


def mixes(training: TrainingSpec) -> bool:
    """Whether an image looks different beside other images."""
    return bool(training.augmentation.mixup or training.augmentation.cutmix)


def num_answers(training: TrainingSpec, num_train: int) -> int:
    """Images answered in an epoch: all of them, or, mixed, those that a full batch takes."""
    return num_train // training.batch_size * training.batch_size if mixes(training) else num_train


def images_part(data_part: Any, training: TrainingSpec, seed: int) -> dict[str, Any]:
    """What determines how the images look, by epoch and image id.

    Args:
        data_part: the data's part of a stage's digest, its manifest's digest in it.
        seed: of augmentation and mixing.
    """
    return {
        "data": data_part,
        "augmentation": training.augmentation.model_dump(mode="json"),
        "batch_size": training.batch_size if mixes(training) else None,
        "epochs": training.epochs,
        "seed": seed,
    }


def store_stage(
    teacher: Network,
    stored: StoredSpec,
    training: TrainingSpec,
    data: DataSpec,
    data_part: dict[str, Any],
    *,
    num_train: int,
    parents: tuple[str, ...],
    label: str,
    environment: dict[str, str],
) -> StoreStage:
    """The stage that writes a teacher's answers.

    Args:
        teacher: who answers.
        training: of the stage that will read them.
        num_train: training images, `data.limit_train` applied.
        parents: the stage that trains the teacher, if one does.
        label: the teacher's name, for people.
        environment: what numbers depend on, see `environment.numerics`.

    Raises:
        ValueError: if more classes are to be kept than there are.
    """
    num_classes = teacher.facts.num_classes
    if stored.top_k > num_classes:
        raise ValueError(
            f"`teacher.stored.top_k` is {stored.top_k}, and the teacher knows {num_classes} classes. Way out: at most "
            f"{num_classes}, which loses nothing."
        )
    parts: dict[str, Any] = {
        "format": FORMAT,
        "kind": "store",
        "teacher": teacher.identity,
        "images": images_part(data_part, training, stored.seed),
        "top_k": stored.top_k,
        "num_classes": num_classes,
        "precision": training.precision,
        "compile": training.compile,
        "code": STORE_VERSION,
        "environment": environment,
    }
    answers = num_answers(training, num_train)
    return StoreStage.model_construct(
        kind="store",
        digest=digest_of(parts),
        label=f"stored:{label}:top{stored.top_k}",
        digest_parts=parts,
        parents=parents,
        teacher=teacher.source,
        model=teacher.model,
        top_k=stored.top_k,
        epochs=training.epochs,
        training=training,
        data=data,
        num_classes=num_classes,
        seed=stored.seed,
        num_answers=answers,
        num_bytes=answers * training.epochs * answer_bytes(stored.top_k, num_classes),
    )


def answers_folder(digest: str) -> str:
    """Where the shards of a store lie: an artefact each, `answers/<digest>/<epoch>-<part>`."""
    return f"answers/{digest}"


def stores(plan: Plan, of: Collection[str]) -> list[StoreStage]:
    """The store stages among these digests."""
    return [stage for digest, stage in plan.stages.items() if digest in of and isinstance(stage, StoreStage)]


def no_room(plan: Plan, missing: Collection[str], store: ArtifactStore) -> list[str]:
    """Why the answers that are still to be written do not fit on the store's disk; empty if they do."""
    wanted = stores(plan, missing)
    needed, free = sum(bytes_to_write(stage, store) for stage in wanted), store.free_bytes()
    return [] if free is None or needed <= free else [too_large(wanted, needed, free, store.location)]


def too_large(wanted: Iterable[StoreStage], needed: int, free: int, root: str) -> str:
    """The sentence for people."""
    names = ", ".join(f"`{stage.label}`" for stage in wanted)
    return (
        f"{names}: {shown_bytes(needed)} of answers are to be written, and `{root}` has {shown_bytes(free)} free. Way "
        "out: a smaller `teacher.stored.top_k`, fewer `training.epochs`, a larger disk (`storage.root`), or no "
        "`teacher.stored`, so that the teacher answers in every step."
    )


def bytes_to_write(stage: StoreStage, store: ArtifactStore) -> int:
    """Size of the shards that are not there yet."""
    written = sum(1 for _ in store.names(answers_folder(stage.digest)))
    if not written:
        return stage.num_bytes
    return round(stage.num_bytes * (1 - min(written / num_shards(stage), 1)))


def num_shards(stage: StoreStage) -> int:
    """Shards of all epochs."""
    return stage.epochs * -(-stage.num_answers // images_per_shard(stage.training))


def images_per_shard(training: TrainingSpec) -> int:
    """Answers in a full shard; mixed images stay with their batch."""
    if not mixes(training):
        return IMAGES_PER_SHARD
    return max(1, IMAGES_PER_SHARD // training.batch_size) * training.batch_size


def shown_bytes(size: int) -> str:
    """`481 GB`, `1.2 MB`: decimal units, as disks are sold."""
    number, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} {units[0]}" if number >= 10 or units[0] == "bytes" else f"{number:.1f} {units[0]}"
