"""Token reorganization: patches that the class token attends to go on, the others become one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import (
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    DENSE_LOGITS,
    FINAL_TOKENS,
    GRID,
    TAP,
    TOKENS,
    Claim,
    Claims,
    Strategy,
    at_blocks,
)
from strategies.blocks import checked, quarters
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.attention import Look
    from strategies.backbone import Output, Student
    from strategies.state import State


class TokenReorganizationConfig(StrategyConfig):
    """Options of `token_reorganization`."""

    name: Literal["token_reorganization"] = "token_reorganization"
    """Always `token_reorganization`."""

    keep_rate: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the patches that go on at each of `blocks`, rounded up. 1 = all."""

    fuse: bool = True
    """The patches that do not go on become one token, which counts as a patch from there on; false = they are lost."""

    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks that reorganize, between attention and MLP, counted from 0; `null` = at the quarters of the network (3, 6
    and 9 of 12)."""

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the stage over which the rate falls from 1 to `keep_rate`, along a cosine. 0 = `keep_rate` from the
    first step."""

    levels: PositiveInt = 4
    """Steps in which it falls: each is another number of tokens, for which a compiled network is compiled again. Torch
    keeps 8 graphs, those of the end and of evaluation among them, and runs without compiling beyond."""


class TokenReorganization(Strategy[TokenReorganizationConfig]):
    """Keep the patches that the class token attends to most, and fuse the others into one (EViT).

    A patch's score is the class token's attention to it, averaged over heads. Of n patches the ⌈keep_rate · n⌉ best go
    on, and one more: Σ score_j · x_j over the others. There is no loss and nothing to train; gradients flow through the
    fused token's weights into the attention. Where a step would remove no token, it leaves them as they are.
    """

    kind = "dynamic"
    paper = "Liang et al. 2022, arXiv:2202.07800"
    neutral: ClassVar = {"keep_rate": 1.0}
    examples = (
        {"keep_rate": 0.7},
        {"keep_rate": 0.5, "fuse": False, "blocks": [0, 2]},
        {"keep_rate": 0.6, "warmup": 0.8, "levels": 3},
    )
    knob = "keep_rate"
    Config = TokenReorganizationConfig

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks that reorganize.

        Raises:
            OptionError: if the network does not have them, or one is listed twice.
        """
        listed = self.config.blocks
        found = checked(self.name, "blocks", quarters(depth) if listed is None else listed, depth)
        return found if self.config.keep_rate < 1 else ()

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens of its blocks, read the class token's attention there. Fused patches are found at the fused
        token; dropped ones nowhere."""
        depth = facts.student.depth
        blocks = self.blocks(depth)
        if not blocks:
            return Claims()
        gone = at_blocks(TAP, range(min(blocks), depth)) | {Claim(FINAL_TOKENS), Claim(DENSE_LOGITS)}
        return Claims(
            owns=at_blocks(TOKENS, blocks),
            needs=at_blocks(CLASS_ATTENTION, blocks) | at_blocks(DENSE, blocks) | {Claim(CLASS_TOKEN)},
            hides=at_blocks(GRID, range(min(blocks) + 1, depth)) | (frozenset() if self.config.fuse else gone),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From a third of the patches at each block to all."""
        return (0.3, 0.5, 0.7, 0.85, 1.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the choice at the token seams."""
        for block in self.blocks(facts.student.depth):
            student.tokens[block] = Reorganize(self.config.keep_rate, self.config.fuse)

    def at(self, student: Student, progress: float) -> None:
        """Lower the rate."""
        if self.config.keep_rate < 1:
            for seam in student.tokens.values():
                if isinstance(seam, Reorganize):
                    seam.keep_rate = falling(self.config.keep_rate, self.config.warmup, self.config.levels, progress)

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_kept`: tokens that leave the last block, as a mean over images; of those that left before, none."""
        return {"tokens_kept": out.tokens_an_image()[-1]}


def falling(keep_rate: float, warmup: float, levels: int, progress: float) -> float:
    """The rate at this share of the stage: from 1 along half a cosine, in equal steps of time.

    keep_rate + (1 − keep_rate) · ½(1 + cos πt),  t = progress / warmup, rounded down to a multiple of 1 / levels
    """
    if progress >= warmup:
        return keep_rate
    t = int(levels * progress / warmup) / levels
    return keep_rate + (1 - keep_rate) * (1 + math.cos(math.pi * t)) / 2


class Reorganize:
    """The token seam of one block.

    Attributes:
        keep_rate: share of the patches that go on now.
        fuse: whether the others become one.
    """

    def __init__(self, keep_rate: float, fuse: bool) -> None:
        self.keep_rate, self.fuse = keep_rate, fuse

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """Choose, and fuse or drop."""
        from strategies.dynamic.selection import attention_received, choose, drop, fuse, num_kept

        num_patches = state.x.shape[1] - state.num_prefix_tokens
        num = num_kept(num_patches, self.keep_rate)
        if num + self.fuse >= num_patches:
            return state
        assert look.class_attention is not None, "`claims` asks for the class token's attention"
        scores = attention_received(look.class_attention, state.num_prefix_tokens)
        choice = choose(scores, num, state.num_prefix_tokens)
        return fuse(state, choice, scores, track_source) if self.fuse else drop(state, choice)
