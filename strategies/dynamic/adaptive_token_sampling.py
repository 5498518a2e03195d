"""Adaptive token sampling: each image keeps as many patches as its attention is spread over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import (
    ATTENTION,
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    DENSE_LOGITS,
    FINAL_TOKENS,
    GRID,
    KEYS,
    PROJECTIONS,
    TAP,
    TOKENS,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.blocks import checked
from strategies.dynamic.pooling import refuse_other_pooling
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Output, Student


class AdaptiveTokenSamplingConfig(StrategyConfig):
    """Options of `adaptive_token_sampling`."""

    name: Literal["adaptive_token_sampling"] = "adaptive_token_sampling"
    """Always `adaptive_token_sampling`."""

    max_tokens: Annotated[int, Field(ge=2)] = 100
    """Tokens that a sampling block leaves of an image at most, prefix tokens among them: without these, the number of
    levels at which it samples. Most images keep fewer, because several levels pick the same patch."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks that sample, counted from 0; `null` = all behind the first quarter of the network (3 to 11 of 12)."""


class AdaptiveTokenSampling(Strategy[AdaptiveTokenSamplingConfig]):
    """Inside attention, sample the patches that the class token looks at; the number differs between images (ATS).

    A patch's score is Σ over heads of A[class, j] · ‖v_j‖, as a share of all patches'. Sorted scores are summed up to a
    distribution, scaled to 0…1, and inverted at `max_tokens` − 1 levels (less where there are more prefix tokens),
    evenly spaced from its smallest positive value to 1: each level picks the patch that is nearest. Patches that are
    picked, and all prefix tokens, ask in this block's attention and go on; all tokens answer. Nothing is random.

    There is no loss and nothing to train, so it works on any trained network; gradients flow through the tokens, not
    through the choice. In training and evaluation alike tokens that are not picked leave the computation (packed).
    """

    kind = "dynamic"
    paper = "Fayyaz et al. 2022, arXiv:2111.15667"
    neutral: ClassVar = {"blocks": []}
    examples = ({"max_tokens": 40}, {"max_tokens": 20, "blocks": [0, 3]})
    knob = "max_tokens"
    Config = AdaptiveTokenSamplingConfig

    def sampling(self, depth: int) -> tuple[int, ...]:
        """Blocks that sample, ascending.

        Raises:
            OptionError: if the network does not have them, or one is listed twice.
        """
        wanted = range(depth // 4, depth) if self.config.blocks is None else self.config.blocks
        return tuple(sorted(checked(self.name, "blocks", wanted, depth)))

    def claims(self, facts: Facts) -> Claims:
        """Own attention and tokens of its blocks. Behind the first, images differ in their tokens."""
        student = facts.student
        blocks = self.sampling(student.depth)
        if not blocks:
            return Claims()
        refuse_other_pooling(self.name, "blocks", student, "`[]` with this pooling")
        least = student.num_prefix_tokens + 1
        if self.config.max_tokens < least:
            raise OptionError(
                self.name,
                "max_tokens",
                f"{self.config.max_tokens} tokens, of which {student.num_prefix_tokens} are prefix tokens",
                f"{least} or more",
                "Prefix tokens always stay: leave room for at least one patch.",
            )
        first = blocks[0]
        behind = range(first + 1, student.depth)
        return Claims(
            owns=at_blocks(ATTENTION, blocks) | at_blocks(TOKENS, blocks),
            needs=frozenset({Claim(DENSE, first), Claim(CLASS_TOKEN)}),
            hides=at_blocks(GRID, behind)
            | at_blocks(DENSE, behind)
            | at_blocks(TAP, range(first, student.depth))
            | frozenset({Claim(FINAL_TOKENS), Claim(DENSE_LOGITS)})
            | frozenset().union(*(at_blocks(what, blocks) for what in (KEYS, CLASS_ATTENTION, PROJECTIONS))),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From an eighth of the network's tokens to as many levels as it has tokens."""
        tokens = facts.student.num_prefix_tokens + facts.student.num_patches
        return tuple(float(tokens * eighths // 8) for eighths in (1, 2, 4, 6, 8))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the sampling halves in the place of the plain ones."""
        from strategies.dynamic.sampling import SampledHalf

        for block in self.sampling(facts.student.depth):
            student.first_half[block] = SampledHalf(student, block, self.config.max_tokens)

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_kept`: tokens that leave the last block, as a mean over images; of those that left before, none."""
        return {"tokens_kept": out.tokens_an_image()[-1]}
