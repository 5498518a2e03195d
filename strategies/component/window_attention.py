"""Window attention: in most blocks, patches attend only to patches near them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import Claims, Strategy
from strategies.blocks import checked
from strategies.component.replaced_attention import replacing
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class WindowAttentionConfig(StrategyConfig):
    """Options of `window_attention`."""

    name: Literal["window_attention"] = "window_attention"
    """Always `window_attention`."""

    window: PositiveInt | None = 7
    """Side of a window, in patches; `null`, or the grid's side and more, is one window of everything, which is plain
    attention. Where the grid is no multiple, the last windows on the right and at the bottom are smaller."""

    global_blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks that keep attention over the whole picture, counted from 0; `null` = the last of each quarter of the
    network (2, 5, 8 and 11 of 12), in networks of fewer than 8 blocks the last block alone."""


class WindowAttention(Strategy[WindowAttentionConfig]):
    """Attend within windows in most blocks, and over the whole picture in a few (plain backbones of ViTDet).

    A patch attends to the patches of its window and to all prefix tokens; class, distillation and register tokens
    attend to everything. No weight is added or taken away, so pretrained networks fit as they are. Of the 2·N²·D MACs
    of scores and weighted values, 2·(Σ s² + P·n + P·N)·D remain (n patches, P prefix tokens, N = n + P, s patches in
    each window: w² in whole ones).
    """

    kind = "component"
    paper = "Li et al. 2022, arXiv:2203.16527"
    neutral: ClassVar = {"window": None}
    examples = ({"window": 4}, {"window": 3, "global_blocks": [0, 2]})
    Config = WindowAttentionConfig

    def windowed(self, facts: Facts) -> tuple[int, ...]:
        """Blocks that attend within windows.

        Raises:
            OptionError: if a block does not exist.
        """
        depth, window = facts.student.depth, self.config.window
        if self.config.global_blocks is not None:
            kept = checked(self.name, "global_blocks", self.config.global_blocks, depth)
        else:
            kept = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)) if depth >= 8 else (depth - 1,)
        if window is None or window >= facts.student.grid:
            return ()
        return tuple(b for b in range(depth) if b not in kept)

    def claims(self, facts: Facts) -> Claims:
        """Own the attention of the windowed blocks, which must see the whole grid."""
        return replacing(self.windowed(facts), grid=True, turns=True, weights_gone=False)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the windows in the attention's place; its weights stay where they are."""
        from strategies.component.local_attention import Windows

        blocks = self.windowed(facts)
        if not blocks:
            return
        assert self.config.window is not None, "without a window no block is windowed"
        for b in blocks:
            student.attention[b] = Windows(self.config.window, b, student.rotate)
