"""How far pruning goes, in widths and numbers of blocks: all that can be known before importance is. Loads no torch.

With several things to remove, `ratio` is the share of each. A target in MACs is turned into the ratio at which a
network whose blocks all lose alike would cost that much. It fixes the tokens' width, the heads' width and the number of
blocks; heads and MLP channels, which may differ between blocks, are then removed until the target is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from strategies.cost import block_macs, blocks_of, network_macs
from strategies.facts import Facts
from strategies.shapes import BlockShape, Shapes

HALVINGS = 40
"""Of the interval of ratios; the 40th is finer than one channel of any network."""


def nearest(number: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(number + 0.5)


def rounded_width(width: int, multiple: int, limit: int) -> int:
    """The nearest multiple, halves up; at least one multiple, at most `limit` (which need not be a multiple)."""
    return limit if width >= limit else min(limit, max(multiple, nearest(width / multiple) * multiple))


@dataclass(frozen=True)
class Goal:
    """What is removed, and in which steps widths may go."""

    what: Collection[str]
    """`heads`, `head_width`, `mlp`, `embed`, `depth`."""
    round_to: int
    """All widths in channels are multiples of this."""

    def width(self, what: str, width: int, ratio: float) -> int:
        """What is left of a width in channels."""
        return rounded_width(nearest(width * (1 - ratio)), self.round_to, width) if what in self.what else width

    def block(self, now: BlockShape, ratio: float) -> BlockShape:
        """What is left of a block that loses the same share as all others."""
        heads = max(1, nearest(now.num_heads * (1 - ratio))) if "heads" in self.what else now.num_heads
        return BlockShape(heads, self.width("mlp", now.mlp_hidden, ratio))

    def depth(self, depth: int, ratio: float) -> int:
        """How many blocks are left."""
        return max(1, depth - nearest(depth * ratio)) if "depth" in self.what else depth

    def shapes(self, facts: Facts, ratio: float) -> Shapes:
        """What is left if all blocks lose the same share, and the most expensive blocks stay.

        Args:
            facts: of the network before.
            ratio: in [0, 1].
        """
        now, before = facts.student, blocks_of(facts.student, facts.shapes)
        left = facts.shapes.left(now.depth + len(facts.shapes.removed))
        by_cost = sorted(range(now.depth), key=lambda b: (-block_macs(now, *before[b]), b))
        stays = sorted(by_cost[: self.depth(now.depth, ratio)])
        gone = set(range(now.depth)) - set(stays)
        return Shapes(
            blocks={new: self.block(before[old], ratio) for new, old in enumerate(stays)},
            embed_dim=self.width("embed", now.embed_dim, ratio) if "embed" in self.what else facts.shapes.embed_dim,
            head_dim=(
                self.width("head_width", now.head_dim, ratio) if "head_width" in self.what else facts.shapes.head_dim
            ),
            removed=(*facts.shapes.removed, *(left[b] for b in gone)),
        )

    def macs(self, facts: Facts, ratio: float) -> int:
        """MACs of an image in the network of `shapes`."""
        after = facts.further(self.shapes(facts, ratio))
        return network_macs(after.student, blocks_of(after.student, after.shapes))

    def ratio_for(self, facts: Facts, target_macs: float) -> float:
        """The smallest ratio at which `macs` is at most `target_macs`; 0 if nothing has to go, 1 if none is."""
        return smallest_ratio(lambda ratio: self.macs(facts, ratio) <= target_macs)


def smallest_ratio(fits: Callable[[float], bool]) -> float:
    """The smallest ratio in [0, 1] that fits, where all above it fit too; 1 if none does."""
    if fits(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
