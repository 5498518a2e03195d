"""What strategies share that merge similar tokens: how many in which block, what they claim, and their place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import Field, NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import DENSE, GRID, KEYS, TOKENS, Claims, OptionError, Strategy, at_blocks
from strategies.blocks import checked
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.attention import Look
    from strategies.backbone import Output, State, Student
    from strategies.dynamic.bipartite_matching import Matching


class MergingConfig(StrategyConfig):
    """Options of every strategy that merges tokens."""

    r: NonNegativeInt | tuple[NonNegativeInt, ...] = 8
    """Tokens removed in each block; or a list with one number for each of `blocks`. A block never removes more
    than half of its tokens."""

    inflect: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Slope of the schedule: the first of `blocks` removes r·(1 − inflect) tokens, the last r·(1 + inflect).
    Negative values merge early, which saves more."""

    prop_attn: bool = True
    """Proportional attention: a token that stands for s patches attracts s times the attention of a single one."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks that merge, counted from 0; `null` = all."""


M = TypeVar("M", bound=MergingConfig)


class Merging(Strategy[M]):
    """Tokens are matched by their keys and reduced between attention and MLP; subclasses say by which seam."""

    kind = "dynamic"
    neutral: ClassVar = {"r": 0}
    knob = "r"

    def schedule(self, depth: int) -> dict[int, int]:
        """Tokens that each block is asked to remove: block → r, only where r > 0.

        Raises:
            OptionError: if `blocks` or `r` do not fit a network of this depth.
        """
        wanted = range(depth) if self.config.blocks is None else self.config.blocks
        blocks = checked(self.name, "blocks", wanted, depth, "Write `null` for all blocks.")
        if isinstance(self.config.r, int):
            counts = ramp(self.config.r, self.config.inflect, len(blocks))
        else:
            counts = list(self.config.r)
            if len(counts) != len(blocks):
                raise OptionError(
                    self.name,
                    "r",
                    f"{len(counts)} numbers for {len(blocks)} blocks",
                    f"one number, or a list of {len(blocks)}",
                    "Write 0 where a block shall not merge.",
                )
            if self.config.inflect:
                raise OptionError(
                    self.name,
                    "inflect",
                    f"{self.config.inflect} together with a list for `r`",
                    "0 with a list",
                    "A list is a schedule of its own: drop `inflect`, or give `r` as one number.",
                )
        return {b: r for b, r in zip(blocks, counts, strict=True) if r > 0}

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens of the merging blocks and need their keys; behind the first, the grid is no longer whole."""
        blocks = self.schedule(facts.student.depth)
        return Claims(
            owns=at_blocks(TOKENS, blocks),
            needs=at_blocks(KEYS, blocks) | at_blocks(DENSE, blocks),
            hides=at_blocks(GRID, range(min(blocks, default=facts.student.depth) + 1, facts.student.depth)),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """Quarters of the way from 0 to where all patches are merged into a few. A list of numbers is no knob."""
        most = facts.student.num_patches // max(len(self.config.blocks or range(facts.student.depth)), 1)
        return tuple(float(most * quarter // 4) for quarter in range(4, -1, -1))

    def seam(self, block: int, r: int, depth: int) -> Merge:
        """What reduces the tokens of one block by r."""
        return Merge(r, self.config.prop_attn)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the merge at the token seams."""
        depth = facts.student.depth
        for block, r in self.schedule(depth).items():
            student.tokens[block] = self.seam(block, r, depth)

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_kept`: tokens that leave the last block, as a mean over images; of those that left before, none."""
        return {"tokens_kept": out.tokens_an_image()[-1]}


def ramp(r: int, inflect: float, num_blocks: int) -> list[int]:
    """Tokens removed in each block: a straight line from r·(1 − inflect) to about r·(1 + inflect), rounded down.

    Source: the schedules of arXiv:2210.09461, section 4.1 ("constant" is `inflect` 0, "decreasing" is −1).
    """
    low = int(r * (1 - inflect))
    return [low + 2 * (r - low) * i // max(num_blocks - 1, 1) for i in range(num_blocks)]


class Merge:
    """The token seam of one block: the matched tokens become their mean."""

    def __init__(self, r: int, prop_attn: bool) -> None:
        self.r, self.prop_attn = r, prop_attn

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """Remove up to r tokens."""
        from strategies.dynamic.bipartite_matching import follow, match, num_merged

        r = num_merged(state.x.shape[1], state.num_prefix_tokens, self.r)
        if r == 0:
            return state
        assert look.keys is not None, "`claims` asks for the keys"
        matching = match(look.keys.detach().mean(1), r, state.num_prefix_tokens)
        return replace(
            self.reduce(state, matching),
            source=follow(state.source, matching) if track_source else None,
            proportional_attention=self.prop_attn,
        )

    def reduce(self, state: State, matching: Matching) -> State:
        """Tokens, sizes and positions after merging."""
        from strategies.dynamic.bipartite_matching import merge

        x, size = merge(state.x, state.size, matching)
        position = None if state.position is None else merge(state.position, state.size, matching)[0]
        return replace(state, x=x, size=size, position=position)
