"""What every part of a measurement shares: the networks, the images, the settings, and the rows that are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from orchestrator.measurement import compute, timing
from orchestrator.measurement.compute import Count
from orchestrator.measurement.conditions import Settings
from orchestrator.measurement.network import Recipe
from orchestrator.measurement.precision import DTYPES
from orchestrator.measurement.rows import STUDENT, Rows
from strategies.api import Strategy
from strategies.backbone import Student


@dataclass
class Subject:
    """A network that is measured."""

    recipe: Recipe
    network: Student
    strategies: list[Strategy[Any]]
    count: Count | None
    """What one image costs, if all images cost the same."""
    params: int
    checkpoint: int
    """Bytes of the file that holds its weights."""


def subject_of(recipe: Recipe, input_shape: tuple[int, ...]) -> Subject:
    """Build a network, and count what must be counted before it is moved or converted.

    Args:
        input_shape: [channels, height, width].

    Raises:
        ValueError: if the network cannot be built.
    """
    network, strategies = recipe.build()
    C, height, width = input_shape
    count = compute.static_count(network, (C, height, width))
    checkpoint = compute.checkpoint_bytes(network.network_state())
    return Subject(recipe, network, strategies, count, compute.num_parameters(network), checkpoint)


@dataclass
class Bench:
    """The networks on the bench.

    Attributes:
        subjects: `student` → its network, and `baseline` → its own if ratios are wanted.
        images: real (or random) images [B, C, side, side], float32 on CPU.
        images_are: what they are, for the conditions: `256 validation images`.
        settings: how it is timed.
        environment: the conditions that the settings put this process into.
        rows: where all parts leave their rows.
    """

    subjects: Mapping[str, Subject]
    images: Tensor
    images_are: str
    settings: Settings
    environment: Mapping[str, JsonValue]
    rows: Rows

    @property
    def varied(self) -> bool:
        """Whether the student's cost depends on what the images show."""
        return self.subjects[STUDENT].count is None

    @property
    def conditions(self) -> dict[str, JsonValue]:
        """What everything that runs on the device is taken under."""
        return {**self.environment, "images": self.images_are, "input_size": self.images.shape[-1]}

    def ready(self, who: str) -> Student:
        """The network on its device and in its precision."""
        return self.subjects[who].network.to(self.settings.device, DTYPES[self.settings.precision])

    def batches(self, batch_size: int) -> list[Tensor]:
        """Batches on the device: one if all images cost the same, otherwise all images in their order."""
        images = self.images if self.varied else self.images[:batch_size]
        images = images.to(self.settings.device, DTYPES[self.settings.precision])
        return timing.batches_of(images, batch_size, varied=self.varied)
