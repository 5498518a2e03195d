"""Spatial-reduction attention: keys and values come from a coarser picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import Claims, OptionError, Strategy
from strategies.blocks import checked
from strategies.component.replaced_attention import replacing
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class SpatialReductionAttentionConfig(StrategyConfig):
    """Options of `spatial_reduction_attention`."""

    name: Literal["spatial_reduction_attention"] = "spatial_reduction_attention"
    """Always `spatial_reduction_attention`."""

    ratio: PositiveInt = 2
    """Side of the square of patches that becomes one key and one value; 1 = plain attention. A grid that is no multiple
    is filled up with zeros on the right and at the bottom."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks with reduced keys and values, counted from 0; `null` = all."""


class SpatialReductionAttention(Strategy[SpatialReductionAttentionConfig]):
    """Shorten keys and values by a strided convolution (PVT): attention(x·W_q, SR(x)·W_k, SR(x)·W_v).

    SR is a convolution of ratio × ratio patches with as large a stride, then LayerNorm. Class and other prefix tokens
    are no part of the picture: they stay keys and values of their own. All tokens remain queries.

    The pretrained query, key, value and projection are used as they are. The convolution starts as the mean of its
    patches instead of at random values, so that keys and values start near what they were trained for.

    With M = P + ⌈side/ratio⌉² keys (n' of them patches), a block costs 2·N·D² + 2·M·D² + 2·N·M·D MACs and the
    convolution n'·ratio²·D² = about n·D², instead of 4·N·D² + 2·N²·D.
    """

    kind = "component"
    paper = "Wang et al. 2021, arXiv:2102.12122"
    neutral: ClassVar = {"ratio": 1}
    examples = ({}, {"ratio": 3, "blocks": [0, 2]})
    Config = SpatialReductionAttentionConfig

    def reduced(self, facts: Facts) -> tuple[int, ...]:
        """Blocks with reduced keys and values.

        Raises:
            OptionError: if a block does not exist, or the ratio is larger than the picture.
        """
        network = facts.student
        if network.family == "vit" and self.config.ratio > network.grid:
            raise OptionError(
                self.name,
                "ratio",
                f"{self.config.ratio} is more than the {network.grid} patches along a side",
                f"1 to {network.grid}",
                "2 quarters the number of keys.",
            )
        wanted = range(network.depth) if self.config.blocks is None else self.config.blocks
        blocks = checked(self.name, "blocks", wanted, network.depth, "Write `null` for all blocks.")
        return blocks if self.config.ratio > 1 else ()

    def claims(self, facts: Facts) -> Claims:
        """Own the attention of these blocks, which must see the whole grid."""
        return replacing(self.reduced(facts), grid=True, turns=True, weights_gone=False)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Give each block its convolution."""
        from torch import nn

        from strategies.component.reduced_attention import ReducedAttention, Reduction

        blocks = self.reduced(facts)
        if not blocks:
            return
        like = next(student.model.parameters())
        reductions = {b: Reduction(student.model.embed_dim, self.config.ratio) for b in blocks}
        modules = nn.ModuleDict({str(b): module for b, module in reductions.items()})
        student.extras[self.name] = modules.to(like.device, like.dtype)
        for b, reduction in reductions.items():
            student.attention[b] = ReducedAttention(reduction, b, student.rotate)
