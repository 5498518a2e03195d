"""Conditional positions: a convolution tells the patches where they are, from what is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator

from specs.strategy import StrategyConfig
from strategies.api import EMBEDDING, PLACED, POSITIONS, Claim, Claims, OptionError, Strategy, at_blocks
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class ConditionalPositionConfig(StrategyConfig):
    """Options of `conditional_position`."""

    name: Literal["conditional_position"] = "conditional_position"
    """Always `conditional_position`."""

    blocks: tuple[NonNegativeInt, ...] = (0,)
    """Blocks with a position generator after them, counted from 0; never the last block."""

    kernel: PositiveInt = 3
    """Side of the generator's convolution, in patches; odd."""

    absolute: bool = False
    """Keep the learned absolute position embedding beside the generator. `false` removes it, as in the paper; `true`
    keeps a pretrained network what it is: the generators start at zero."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(
                f"{kernel} is even, so no patch is in the middle; write an odd number, such as {kernel + 1}"
            )
        return kernel


class ConditionalPosition(Strategy[ConditionalPositionConfig]):
    """Generate positions from neighbouring patches (CPVT): x ← x + conv(x), depth-wise, after block 0.

    The convolution's zero padding tells patches how far the edge is, so positions come without a table of them, for
    pictures of any size. Class and other prefix tokens pass unchanged, as in the paper.

    Costs n·kernel²·D MACs for each generator (n patches, width D). Without `absolute` the position embedding leaves the
    network.
    """

    kind = "component"
    paper = "Chu et al. 2021, arXiv:2102.10882"
    neutral: ClassVar = {"blocks": [], "absolute": True}
    examples = ({}, {"blocks": [0, 2], "kernel": 5, "absolute": True})
    Config = ConditionalPositionConfig

    def before(self, depth: int) -> tuple[int, ...]:
        """Blocks that the generators stand before: each the one after a block of `blocks`.

        Raises:
            OptionError: if there is no such block, it is the last, or it is listed twice.
        """
        for b in self.config.blocks:
            if b >= depth - 1 or self.config.blocks.count(b) > 1:
                problem = "a block is listed twice" if b < depth - 1 else f"no block comes after block {b}"
                raise OptionError(
                    self.name,
                    "blocks",
                    problem,
                    f"different blocks from 0 to {depth - 2}",
                    "The paper writes [0]; later blocks gain less.",
                )
        return tuple(b + 1 for b in self.config.blocks)

    def claims(self, facts: Facts) -> Claims:
        """Tell positions before these blocks, which the whole grid must reach; without `absolute` nobody else can
        change the position embedding."""
        blocks = self.before(facts.student.depth)
        return Claims(
            owns=at_blocks(POSITIONS, blocks),
            needs=at_blocks(PLACED, blocks),
            hides=frozenset() if self.config.absolute else frozenset({Claim(EMBEDDING)}),
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the generators at the position seams."""
        from torch import nn

        from strategies.component.patch_grid import remove_position_embedding
        from strategies.component.position_generator import PositionGenerator

        blocks, c = self.before(facts.student.depth), self.config
        if not c.absolute:
            remove_position_embedding(student.model)
        if not blocks:
            return
        like = next(student.model.parameters())
        generators = {
            b: PositionGenerator(student.model.embed_dim, c.kernel, at_zero=c.absolute).to(like.device, like.dtype)
            for b in blocks
        }
        student.extras[self.name] = nn.ModuleDict({str(b - 1): module for b, module in generators.items()})
        student.positions.update(generators)
