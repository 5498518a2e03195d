"""A teacher that is not run: its answers were stored, and are looked up by epoch and image."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import ValidationError

from cluster.storage import ArtifactSource
from orchestrator.errors import StoreError
from orchestrator.planning.digest import digest_of
from orchestrator.planning.explain import differences
from orchestrator.planning.plan import StoreStage, TrainStage
from orchestrator.planning.stored import images_part
from orchestrator.training.answers import Answers, compress, expand
from orchestrator.training.order import Key
from orchestrator.training.shards import Epoch
from strategies.catalog import facts_of
from strategies.facts import ModelFacts
from strategies.state import Output

MANIFEST = "stage.json"
"""The store's own settings: teacher, images, augmentation, K. Its name in the store is their digest."""


class StoredTeacher:
    """The teacher's output from its stored answers; its network is never loaded. One epoch is open at a time.

    Args:
        stage: the stage that is taught.
        digest: of the store stage.
        store: where its shards are.
        device: where the logits are wanted.

    Raises:
        StoreError: if the answers are missing or damaged, or belong to other images; says what differs.
    """

    def __init__(self, stage: TrainStage, digest: str, store: ArtifactSource, device: torch.device) -> None:
        self._store, self._device = store, device
        self._stage = _read(digest, store)
        _check(self._stage, stage)
        self._epoch: Epoch | None = None
        self.facts: ModelFacts = replace(facts_of(self._stage.model), answers_only=True)
        """What is known of the teacher: its network, of which only the logits can be had."""

    def __call__(self, keys: list[Key]) -> Output:
        """The teacher's output on a micro-batch: logits [B, C] (float32) and nothing else.

        Args:
            keys: (epoch, image) of each, all of one epoch.
        """
        epoch = keys[0][0]
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = None  # unmapped before the next one is mapped
            self._epoch = Epoch(self._stage, epoch, self._store)
        return self._output(self._epoch.look_up([image for _, image in keys]))

    def to_anything(self, num_images: int) -> Output:
        """An output as large as those that are stored, for images that have no answer: memory is measured on such."""
        return self._output(compress(torch.randn(num_images, self._stage.num_classes), self._stage.top_k))

    def _output(self, answers: Answers) -> Output:
        on_device = Answers(*(tensor.to(self._device, non_blocking=True) for tensor in answers))
        return Output(logits=expand(on_device, self._stage.num_classes))


def _read(digest: str, store: ArtifactSource) -> StoreStage:
    """The manifest of a store."""
    try:
        text = (store.fetch(f"stages/{digest}", [MANIFEST]) / MANIFEST).read_text(encoding="utf-8")
        stage = StoreStage.model_validate_json(text)
    except (FileNotFoundError, ValidationError, ValueError) as error:
        raise StoreError(f"the stored teacher {digest[:10]} cannot be used: {error}") from error
    if digest_of(stage.digest_parts) != digest:
        raise StoreError(
            f"the manifest of the stored teacher `{stage.label}` describes another one than {digest[:10]}; delete "
            f"`stages/{digest}` in the store and run again"
        )
    return stage


def _check(stored: StoreStage, stage: TrainStage) -> None:
    """Raise `StoreError` unless the teacher has seen the images that this stage shows its student."""
    seed = stage.seed if stage.images_seed is None else stage.images_seed
    wanted = images_part(stage.digest_parts.get("data"), stage.training, seed)
    found = list(differences(stored.digest_parts["images"], wanted))
    if found:
        listed = "".join(f"\n  {difference}" for difference in found)
        raise StoreError(
            f"the stored teacher `{stored.label}` has seen other images than `{stage.label}` is to see (stored → "
            f"wanted):{listed}\nPlan again: answers are stored for the images as they are now"
        )
