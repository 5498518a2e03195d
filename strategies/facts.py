"""What is known of a network before it is built: enough to plan, claim and refuse. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


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
    tap_widths: tuple[int, ...] = ()
    """Channels of the features after each block (`vit`) or feature stage (`other`), `depth` of them. Filled by
    `strategies.catalog`; empty only where nobody asked the catalog."""

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return math.isqrt(self.num_patches)


@dataclass(frozen=True)
class Facts:
    """Everything a strategy may look at before anything is built."""

    student: ModelFacts
    teacher: ModelFacts | None = None
    """`None` when the stage has no teacher."""
    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Block → (heads, MLP width) where an earlier stage has pruned; empty otherwise."""
