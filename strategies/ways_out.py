"""What a strategy whose images may leave early says of them, so that its threshold can be found by a target.

Loads no torch. Shapes: B images, C classes, A ways out, the last of which is the network's own end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Target(NamedTuple):
    """What a threshold is to reach."""

    option: Literal["target_macs", "target_accuracy"]
    """`target_macs`: at most this share of the MACs that an image costs without early exits. `target_accuracy`: at
    least this share of the top-1 that the network has when no image leaves early."""
    wanted: float


class Answers(NamedTuple):
    """What a network says of a batch at every way out, whether or not images would leave there."""

    confidence: Tensor
    """Of all ways but the last, as the network compares it with its threshold [A − 1, B] (float32)."""
    logits: Tensor
    """[A, B, C]."""


class WaysOut(Protocol):
    """The ways out of one network in evaluation mode, shallow first."""

    target: Target

    @property
    def num(self) -> int:
        """A."""
        ...

    @property
    def threshold(self) -> float:
        """The threshold that is in the network's weights; 1, with which no image leaves early, until one is found."""
        ...

    def answers(self, images: Tensor) -> Answers:
        """Run all of the network on every image [B, channels, side, side]."""
        ...

    def only(self, way: int) -> AbstractContextManager[None]:
        """Meanwhile every image leaves by this way, counted from 0."""
        ...

    def without(self) -> AbstractContextManager[None]:
        """Meanwhile the network has no early exits."""
        ...

    def settle(self, threshold: float) -> None:
        """Write a threshold into the network's weights."""
        ...
