"""Slow-fast tokens: blocks run on the patches that matter; the others wait in a group of blocks and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import (
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    GRID,
    PLACED,
    TAP,
    TOKENS,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


class SlowFastTokensConfig(StrategyConfig):
    """Options of `slow_fast_tokens`."""

    name: Literal["slow_fast_tokens"] = "slow_fast_tokens"
    """Always `slow_fast_tokens`."""

    keep_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the patches that are slow, rounded up: only they pass the blocks from `start` on. 1 = all."""

    start: PositiveInt | None = None
    """First block that runs on slow tokens, counted from 0; `null` = after a third of the network (4 of 12)."""

    group: PositiveInt | None = None
    """Blocks between two choices of slow tokens; `null` = a third of the network (4 of 12)."""

    representative: bool = False
    """One token more, the mean of the fast ones weighted by their attention, passes the blocks of a group, and the fast
    tokens change as much as it does; false = they come back unchanged."""

    head: Literal["patches", "own"] = "patches"
    """`patches`: the classifier reads the mean of all patches, and in training a second one reads the class token, with
    half of the loss each. `own`: the network's own pooling and classifier, for use without training."""


class SlowFastTokens(Strategy[SlowFastTokensConfig]):
    """Let only the patches with the most class attention pass each group of blocks (Evo-ViT).

    A patch's score is the class token's attention to it, summed over heads: that of block `start` − 1 first, then, as
    long as it is slow, half of what it was and half of its block's. At `start`, and after every group, the
    ⌈keep_rate · n⌉ patches with the largest scores become slow. No token is lost: the whole grid is there behind every
    block, so the mean of all patches can be classified.

    With `head: patches` the loss is ½ CE(mean patch) + ½ CE(class token), and evaluation answers from the patches. A
    distillation token keeps its head: the patches take the class token's part beside it.
    """

    kind = "dynamic"
    paper = "Xu et al. 2022, arXiv:2108.01390"
    version = 2
    neutral: ClassVar = {"keep_rate": 1.0, "head": "own"}
    examples = (
        {"keep_rate": 0.5},
        {"keep_rate": 0.3, "start": 2, "group": 2, "representative": True},
        {"keep_rate": 0.6, "start": 1, "group": 2, "head": "own"},
    )
    knob = "keep_rate"
    Config = SlowFastTokensConfig

    def choices(self, depth: int) -> tuple[int, ...]:
        """Blocks before which slow tokens are chosen, ascending; none if all are slow.

        Raises:
            OptionError: if `start` is no block of this network.
        """
        third = max(depth // 3, 1)
        start = self.config.start or third
        if start >= depth:
            way_out = "Write `null` for a third of the network."
            raise OptionError(
                self.name, "start", f"there is no block {start}", f"blocks from 1 to {depth - 1}", way_out
            )
        return tuple(range(start, depth, self.config.group or third)) if self.config.keep_rate < 1 else ()

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens from the block before `start` on, whose class attention is the first score. Fast tokens stand
        at their places, unless a representative changes them only at the end of a group."""
        depth = facts.student.depth
        choices = self.choices(depth)
        head = frozenset({Claim(CLASS_TOKEN)} if self.config.head == "patches" or choices else ())
        if not choices:
            return Claims(needs=head)
        behind, seen = range(choices[0], depth), range(choices[0] - 1, choices[-1])
        taps = at_blocks(TAP, behind) if self.config.representative else frozenset()
        return Claims(
            owns=at_blocks(TOKENS, range(choices[0] - 1, depth)),
            needs=head | at_blocks(CLASS_ATTENTION, seen) | at_blocks(DENSE, range(choices[0] - 1, depth)),
            hides=at_blocks(GRID, behind) | taps,
            offers=at_blocks(PLACED, choices[:1]),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From a quarter of the patches to all."""
        return (0.25, 0.4, 0.5, 0.7, 1.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put choices and scores at their seams, and the heads at theirs."""
        from strategies.dynamic.slow_fast import ClassHead, PatchHead, Regroup, Score

        depth, c = facts.student.depth, self.config
        choices = self.choices(depth)
        for block in (*choices, depth) if choices else ():
            student.entry[block] = Regroup(self.name, c.keep_rate if block < depth else None, c.representative)
        for block in range(choices[0] - 1, choices[-1]) if choices else ():
            student.tokens[block] = Score(self.name, first=block < choices[0])
        if c.head == "patches":
            student.heads.append(PatchHead(student))
            student.extras[self.name] = student.readouts[self.name] = ClassHead(student.model)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`class_head`: cross-entropy of the second classifier, on the class token."""
        from torch.nn.functional import cross_entropy

        if self.config.head == "own":
            return {}
        return {"class_head": cross_entropy(out.readouts[self.name]["class_logits"].float(), target)}

    def weights(self) -> dict[str, float]:
        """Half for each classifier."""
        return {"task": 0.5, "class_head": 0.5} if self.config.head == "patches" else {}

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_computed`: tokens that a block runs on, as a mean over blocks and images; none after an exit."""
        tokens = out.tokens_an_image()
        return {"tokens_computed": sum(tokens) / len(tokens)}
