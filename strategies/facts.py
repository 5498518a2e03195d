"""What is known of a network before it is built: enough to plan, claim and refuse. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from strategies.shapes import WHOLE, Shapes


@dataclass(frozen=True)
class ModelFacts:
    """Structure of one timm network with its arguments."""

    model: str
    """Name in timm's registry."""
    family: Literal["vit", "other"]
    """`vit`: runs in the explicit `Backbone` loop with all seams. `other`: only logits and taps."""
    depth: int
    """Blocks (`vit`) or feature stages (`other`)."""
    num_classes: int
    image_size: int
    """Side of the input in pixels."""
    why_not_vit: str | None = None
    """For `other`: why it does not run in the loop, for error messages."""
    embed_dim: int = 0
    num_heads: int = 0
    head_dim: int = 0
    mlp_hidden: int = 0
    patch_size: int = 0
    num_patches: int = 0
    num_prefix_tokens: int = 0
    """Class, distillation and register tokens before the patches."""
    has_class_token: bool = False
    has_distillation_token: bool = False
    in_chans: int = 3
    global_pool: str = "token"
    can_prune: bool = True
    """Heads and MLP channels can be cut: timm's `Mlp`, and no norm inside attention or MLP."""
    qk_norm: bool = False
    """Queries and keys are normed over the width of a head."""
    patch_drop: float = 0.0
    """Share of the patches that timm drops at random in training (`patch_drop_rate`)."""
    patch_embedding: str = "PatchEmbed"
    """Class of the layer that makes tokens of patches; timm's plain one is a single convolution."""
    num_inner_widths: int = 0
    """Of `other`: how many of its blocks' inner widths can be cut (`strategies/inner_widths.py`)."""
    tap_widths: tuple[int, ...] = ()
    """Channels of the features after each block (`vit`) or feature stage (`other`), `depth` of them. Filled by
    `strategies.catalog`; empty only where nobody asked the catalog."""
    answers_only: bool = False
    """A teacher that is not run: its logits were stored, and nothing else of it can be had."""
    args: str = field(default="{}", compare=False)
    """Arguments with which timm builds it, as JSON; what they do to it is in the other fields."""

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return math.isqrt(self.num_patches)

    def at(self, shapes: Shapes, now: Shapes = WHOLE) -> ModelFacts:
        """The same network cut further. What differs between blocks stays in the shapes.

        Args:
            shapes: what is left then.
            now: what these facts are about; nothing is cut, unless this says so.
        """
        if self.family != "vit":
            return self
        depth = self.depth + len(now.removed) - len(shapes.removed)
        embed_dim = self.embed_dim if shapes.embed_dim is None else shapes.embed_dim
        return replace(
            self,
            depth=depth,
            embed_dim=embed_dim,
            head_dim=self.head_dim if shapes.head_dim is None else shapes.head_dim,
            tap_widths=(embed_dim,) * depth,
        )


@dataclass(frozen=True)
class Facts:
    """Everything a strategy may look at before anything is built."""

    student: ModelFacts
    """At `shapes`: its depth and widths are those that pruning left."""
    teacher: ModelFacts | None = None
    """`None` when the stage has no teacher."""
    shapes: Shapes = WHOLE
    """What earlier pruning left of the student."""
    others: tuple[ModelFacts, ...] = ()
    """The stage's further teachers, in the spec's order."""

    @classmethod
    def of(cls, student: ModelFacts, shapes: Shapes, teachers: Sequence[ModelFacts] = ()) -> Facts:
        """Facts of a pruned network.

        Args:
            student: as timm builds it.
            shapes: what is left of it.
            teachers: the first teacher first.
        """
        return cls(student.at(shapes), teachers[0] if teachers else None, shapes, tuple(teachers[1:]))

    @property
    def teachers(self) -> tuple[ModelFacts, ...]:
        """The teacher and the further ones; empty without any."""
        return () if self.teacher is None else (self.teacher, *self.others)

    def further(self, shapes: Shapes) -> Facts:
        """The same with a student that was cut to these shapes since."""
        return replace(self, student=self.student.at(shapes, self.shapes), shapes=shapes)
