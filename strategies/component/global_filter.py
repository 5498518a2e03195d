"""Global filter: a learned filter over the whole picture takes the place of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import GRID_SIZE, Claim, Claims, OptionError, Strategy
from strategies.blocks import checked
from strategies.component.replaced_attention import remove_attention, replacing
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class GlobalFilterConfig(StrategyConfig):
    """Options of `global_filter`."""

    name: Literal["global_filter"] = "global_filter"
    """Always `global_filter`."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks that filter instead of attending, counted from 0; `null` = the first half of the network. All of them,
    as in the paper, need a network that averages its patches."""


class GlobalFilter(Strategy[GlobalFilterConfig]):
    """Replace attention by a product in the Fourier domain (GFNet): x ← F⁻¹(K ⊙ F(x)).

    F is the two-dimensional Fourier transform over the patch grid, channel by channel, and K a learned complex weight
    for each frequency and channel: a circular convolution as large as the picture, in O(n log n). K starts as in the
    paper, normal with standard deviation 0.02. At another size of the picture K is resampled, bilinearly.

    Only patches are filtered. Class and other prefix tokens have no place in the picture: these blocks add nothing to
    them before the MLP, so a network that reads its class token keeps attention in at least one block.

    Query, key, value and projection of the filtered blocks leave the network. Counted MACs hold matrix products and
    convolutions; Fourier transforms and the product with K are neither, so these blocks count their MLP alone.
    Measured latency holds everything.
    """

    kind = "component"
    paper = "Rao et al. 2021, arXiv:2107.00645"
    neutral: ClassVar = {"blocks": []}
    examples = ({}, {"blocks": [0, 2]})
    Config = GlobalFilterConfig

    def filtered(self, facts: Facts) -> tuple[int, ...]:
        """Blocks that filter.

        Raises:
            OptionError: if there is no such block, or none is left in which the class token sees patches.
        """
        network = facts.student
        wanted = range(network.depth // 2) if self.config.blocks is None else self.config.blocks
        blocks = checked(self.name, "blocks", wanted, network.depth)
        if blocks and len(blocks) == network.depth and network.family == "vit" and network.global_pool != "avg":
            raise OptionError(
                self.name,
                "blocks",
                f"no block is left in which the class token of `{network.model}` sees a patch",
                f"at most {network.depth - 1} of the {network.depth} blocks",
                "Leave the last block out, or average the patches: `global_pool: avg` in the student's `args`.",
            )
        return blocks

    def claims(self, facts: Facts) -> Claims:
        """Own the attention of the filtered blocks, which must see the whole grid, at the size of the filters."""
        blocks = self.filtered(facts)
        claims = replacing(blocks, grid=True, turns=False, weights_gone=True)
        return replace(claims, needs=claims.needs | {Claim(GRID_SIZE)}) if blocks else claims

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the filters in the attention's place."""
        from torch import nn

        from strategies.component.fourier_filter import Filter

        blocks = self.filtered(facts)
        if not blocks:
            return
        like = next(student.model.parameters())
        filters = {b: Filter(facts.student.grid, student.model.embed_dim).to(like.device, like.dtype) for b in blocks}
        student.extras[self.name] = nn.ModuleDict({str(b): module for b, module in filters.items()})
        student.attention.update(filters)
        for b in blocks:
            remove_attention(student.model.blocks[b])
