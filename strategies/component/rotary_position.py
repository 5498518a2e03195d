"""Rotary positions: queries and keys turn with the place of their patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import DENSE, EMBEDDING, GRID, POSITIONS, ROTATION, Claim, Claims, OptionError, Strategy, at_blocks
from strategies.blocks import checked
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student

THETA = {"axial": 100.0, "mixed": 10.0}
"""Base of the frequencies, as the paper sets it."""


class RotaryPositionConfig(StrategyConfig):
    """Options of `rotary_position`."""

    name: Literal["rotary_position"] = "rotary_position"
    """Always `rotary_position`."""

    kind: Literal["axial", "mixed"] = "mixed"
    """`axial`: half of the channels turn with the column, half with the row, at fixed frequencies. `mixed`: each pair
    of channels turns with both, at frequencies that each head and block learns."""

    theta: Annotated[float, Field(gt=1)] | None = None
    """Base of the frequencies, which fall from 1 to nearly 1/theta radians a patch; `null` = the paper's, 100 for
    `axial` and 10 for `mixed`."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks whose attention turns queries and keys, counted from 0; `null` = all."""

    absolute: bool = False
    """Keep the learned absolute position embedding too. `false` removes it, as in the paper."""


class RotaryPosition(Strategy[RotaryPositionConfig]):
    """Turn pairs of channels of queries and keys by angles that grow with row and column (RoPE for ViT).

    Scores then depend on how far two patches are apart. Channels t and t + E/2 are pair t, E the head width; with
    θ_t = theta^(−4t/E):
    `axial`: pair 2t turns by θ_t·column, pair 2t + 1 by θ_t·row.
    `mixed`: pair t of each head turns by f_t·row + g_t·column, f and g learned; they start as θ_t in two directions at
    a right angle, turned at random for each head.

    Class and other prefix tokens are not turned. Merged tokens stand at the mean of their patches' places, weighted
    like the tokens themselves, and tokens that are packed keep their places. Nothing is multiplied as a matrix: the
    counted MACs are those of the plain network. Without `absolute` the position embedding leaves the network.

    Heads that are pruned at once, before training, take no frequencies with them. Where pruning goes in steps, the
    frequencies of blocks that lose heads begin anew at each step: `axial` has none to lose.
    """

    kind = "component"
    paper = "Heo et al. 2024, arXiv:2403.13298"
    neutral: ClassVar = {"blocks": [], "absolute": True}
    examples = ({}, {"kind": "axial", "absolute": True, "blocks": [1, 3]})
    Config = RotaryPositionConfig

    def turning(self, facts: Facts) -> tuple[int, ...]:
        """Blocks that turn queries and keys.

        Raises:
            OptionError: if a block does not exist, or the heads' channels do not make pairs for rows and columns.
        """
        network = facts.student
        wanted = range(network.depth) if self.config.blocks is None else self.config.blocks
        blocks = checked(self.name, "blocks", wanted, network.depth, "Write `null` for all blocks.")
        if blocks and network.head_dim % 4:
            raise OptionError(
                self.name,
                "blocks",
                f"the heads of `{network.model}` are {network.head_dim} channels wide, which is no multiple of 4",
                "none for this network",
                "Choose `embed_dim` and `num_heads` in the student's `args` so that their quotient is a multiple of 4.",
            )
        return blocks

    def claims(self, facts: Facts) -> Claims:
        """Turn these blocks' queries and keys; read the patches' places before block 0, where all are there."""
        blocks = self.turning(facts)
        start = frozenset({Claim(GRID, 0), Claim(DENSE, 0)}) if blocks else frozenset()
        return Claims(
            owns=at_blocks(ROTATION, blocks) | (frozenset({Claim(POSITIONS, 0)}) if blocks else frozenset()),
            needs=start,
            hides=frozenset() if self.config.absolute else frozenset({Claim(EMBEDDING)}),
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Write down the places before block 0, and turn queries and keys in each block."""
        from torch import nn

        from strategies.component.patch_grid import remove_position_embedding
        from strategies.component.rotation import Axial, Mixed, Places

        blocks, c = self.turning(facts), self.config
        if not c.absolute:
            remove_position_embedding(student.model)
        if not blocks:
            return
        theta = THETA[c.kind] if c.theta is None else c.theta
        student.positions[0] = Places()
        attention = {b: student.model.blocks[b].attn for b in blocks}
        if c.kind == "axial":
            student.rotate.update({b: Axial(attn.head_dim, theta) for b, attn in attention.items()})
            return
        like = next(student.model.parameters())
        turns = {
            b: Mixed(attn.num_heads, attn.head_dim, theta).to(like.device, like.dtype) for b, attn in attention.items()
        }
        student.extras[self.name] = nn.ModuleDict({str(b): module for b, module in turns.items()})
        student.rotate.update(turns)
