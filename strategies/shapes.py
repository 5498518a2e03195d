"""What pruning left of a network, as one value that planning, checkpoints and the closed form of cost share.

Loads no torch. `strategies/surgery.py` cuts networks to such shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class BlockShape(NamedTuple):
    """Widths inside one block of a Vision Transformer."""

    num_heads: int
    mlp_hidden: int
    """Channels between the two layers of the MLP."""


@dataclass(frozen=True)
class Shapes:
    """Where a network is smaller than timm builds it; the default is the whole network. False if nothing is."""

    blocks: Mapping[int, BlockShape] = field(default_factory=dict)
    """Block → its widths where they were cut. Blocks are counted among those that are left."""
    embed_dim: int | None = None
    """Width of the tokens; `None` = timm's."""
    head_dim: int | None = None
    """Width of every head; `None` = timm's."""
    removed: tuple[int, ...] = ()
    """Blocks that are gone, ascending, counted as timm builds them."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Linear layer (by its name in the network that is left) → rank, where it is stored as two factors
    (`strategies/factors.py`)."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Inner width → its channels, where networks outside of the loop were cut (`surgery.inner_widths`)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", {b: BlockShape(*shape) for b, shape in sorted(self.blocks.items())})
        object.__setattr__(self, "ranks", dict(sorted(self.ranks.items())))
        object.__setattr__(self, "widths", dict(sorted(self.widths.items())))
        object.__setattr__(self, "removed", tuple(sorted(self.removed)))

    def __bool__(self) -> bool:
        return self != WHOLE

    def __hash__(self) -> int:
        blocks, ranks, widths = (tuple(m.items()) for m in (self.blocks, self.ranks, self.widths))
        return hash((blocks, self.embed_dim, self.head_dim, self.removed, ranks, widths))

    def left(self, depth: int) -> list[int]:
        """Blocks that are left, counted as timm builds them.

        Args:
            depth: blocks of the network as timm builds it.
        """
        return [b for b in range(depth) if b not in self.removed]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; what is as timm builds it is left out."""
        said: dict[str, Any] = {
            "blocks": {str(b): list(shape) for b, shape in self.blocks.items()},
            "embed_dim": self.embed_dim,
            "head_dim": self.head_dim,
            "removed": list(self.removed),
            "ranks": dict(self.ranks),
            "widths": dict(self.widths),
        }
        return {k: v for k, v in said.items() if v not in (None, {}, [])}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Shapes:
        """What `to_json` gave, or the older form, block → [heads, MLP width].

        Raises:
            ValueError, TypeError, AttributeError: if it is neither.
        """
        if all(key.isdigit() for key in said):
            said = {"blocks": said}
        unknown = sorted(said.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"shapes hold nothing called {', '.join(unknown)}")
        return cls(
            blocks={int(b): BlockShape(int(h), int(m)) for b, (h, m) in said.get("blocks", {}).items()},
            embed_dim=None if said.get("embed_dim") is None else int(said["embed_dim"]),
            head_dim=None if said.get("head_dim") is None else int(said["head_dim"]),
            removed=tuple(int(b) for b in said.get("removed", ())),
            ranks={str(name): int(rank) for name, rank in said.get("ranks", {}).items()},
            widths={str(name): int(width) for name, width in said.get("widths", {}).items()},
        )


WHOLE = Shapes()
"""Nothing is cut."""
