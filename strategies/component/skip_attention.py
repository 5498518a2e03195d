"""Skipped attention: some blocks reuse what the attention of the block before found."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import Claims, OptionError, Strategy
from strategies.blocks import checked
from strategies.component.replaced_attention import remove_attention, replacing
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class SkipAttentionConfig(StrategyConfig):
    """Options of `skip_attention`."""

    name: Literal["skip_attention"] = "skip_attention"
    """Always `skip_attention`."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks without attention of their own, counted from 0; never block 0. `null` = the second and third quarter of
    the network (blocks 3 to 8 of 12, the paper's)."""


class SkipAttention(Strategy[SkipAttentionConfig]):
    """Replace the attention of some blocks by a cheap function of the attention before (SkipAt).

    attention_l := [prefix rows of attention_{l−1}, Φ_l(patch rows of attention_{l−1})], with
    Φ = ECA ∘ Linear(2D → D) ∘ GELU ∘ depth-wise 5×5 convolution ∘ GELU ∘ Linear(D → 2D). Blocks in a row form a chain.
    Class and other prefix tokens keep what the last true attention gave them.

    The skipped blocks' norm, query, key, value and projection leave the network; their MLPs stay, with their weights.
    Φ replaces 4·N·D² + 2·N²·D MACs by 4·n·D² + 50·n·D + 3·D (n patches, N tokens): the gain grows with the square of
    the number of patches. What is skipped cannot be pruned or factorised.
    """

    kind = "component"
    paper = "Venkataramanan et al. 2023, arXiv:2301.02240"
    neutral: ClassVar = {"blocks": []}
    examples = ({}, {"blocks": [3]})
    Config = SkipAttentionConfig

    def skipped(self, depth: int) -> tuple[int, ...]:
        """Blocks without attention, ascending.

        Raises:
            OptionError: if there is no such block, or none before it whose attention could be reused.
        """
        if self.config.blocks is None:
            return tuple(range(max(1, depth // 4), depth * 3 // 4))
        blocks = checked(self.name, "blocks", self.config.blocks, depth)
        if 0 in blocks:
            raise OptionError(
                self.name,
                "blocks",
                "no attention comes before block 0",
                f"blocks from 1 to {depth - 1}",
                "Start at block 1 or later; write `null` for the second and third quarter of the network.",
            )
        return tuple(sorted(blocks))

    def claims(self, facts: Facts) -> Claims:
        """Own the attention of the skipped blocks, which must see the whole grid."""
        return replacing(self.skipped(facts.student.depth), grid=True, turns=False, weights_gone=True)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put Φ in the attention's place, and let the block before hand its attention on."""
        from torch import nn

        from strategies.component.attention_reuse import Reuse

        blocks = self.skipped(facts.student.depth)
        if not blocks:
            return
        like = next(student.model.parameters())
        reuse = {b: Reuse(student.model.embed_dim).to(like.device, like.dtype) for b in blocks}
        student.extras[self.name] = nn.ModuleDict({str(b): module for b, module in reuse.items()})
        student.attention.update(reuse)
        for b in blocks:
            student.carry.add(b - 1)
            remove_attention(student.model.blocks[b], norm=True)
