"""Token idling: in each block some patches sit out; any of them may work again in the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import CLASS_TOKEN, DENSE, GRID, KEYS, PLACED, TOKENS, Claim, Claims, Strategy, at_blocks
from strategies.blocks import checked
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


class TokenIdlingConfig(StrategyConfig):
    """Options of `token_idling`."""

    name: Literal["token_idling"] = "token_idling"
    """Always `token_idling`."""

    keep_rate: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the patches that work in the blocks of the first stage, rounded up; those of stage s keep
    keep_rate^s. 1 = all."""

    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks in which patches idle, counted from 0; `null` = all behind the first quarter of the network (3 to 11 of
    12)."""

    stages: PositiveInt = 3
    """Stages into which `blocks` are divided, equally long as far as possible."""

    cut_weight: Annotated[float, Field(ge=0)] = 20.0
    """Weight of the token-cut loss beside the task's cross-entropy, which keeps weight 1. 0 = no such loss, and
    training saves as much as evaluation."""


class TokenIdling(Strategy[TokenIdlingConfig]):
    """Run each block on the patches that its class token attends to most; the others pass it unchanged (IdleViT).

    A patch's score is the logit of the class token's attention to it, as a mean over heads, from this block's own
    queries and keys. Idle patches keep value and place, and every block chooses anew from all of them.

    The token-cut loss, after the normalised cut of graphs, drives attention out of the cut between working and idle
    tokens. With W = softmax over tokens of the mean logits and m = 1 for working tokens, its mean over blocks is

        mean_i (Σ_{j ≠ class token} |m_i − m_j| W_ij)² + mean_i (m_i − Σ_j m_i m_j W_ij)²
    """

    kind = "dynamic"
    paper = "Xu et al. 2023, arXiv:2310.05654"
    neutral: ClassVar = {"keep_rate": 1.0}
    examples = (
        {"keep_rate": 0.7},
        {"keep_rate": 0.5, "blocks": [0, 2, 3], "stages": 1, "cut_weight": 1.0},
        {"keep_rate": 0.6, "blocks": [1, 3], "cut_weight": 0.0},
    )
    knob = "keep_rate"
    Config = TokenIdlingConfig

    def rates(self, depth: int) -> dict[int, float]:
        """Block → share of the patches that work in it, where it is below 1.

        Raises:
            OptionError: if the network does not have a block, or one is listed twice.
        """
        listed = self.config.blocks
        blocks = sorted(checked(self.name, "blocks", range(depth // 4, depth) if listed is None else listed, depth))
        if self.config.keep_rate == 1:
            return {}
        return {b: self.config.keep_rate ** (1 + i * self.config.stages // len(blocks)) for i, b in enumerate(blocks)}

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens of its blocks, read keys there. Behind each block all patches are at their places again."""
        blocks = self.rates(facts.student.depth)
        if not blocks:
            return Claims()
        return Claims(
            owns=at_blocks(TOKENS, blocks),
            needs=at_blocks(KEYS, blocks) | at_blocks(DENSE, blocks) | {Claim(CLASS_TOKEN)},
            hides=at_blocks(GRID, blocks),
            offers=at_blocks(PLACED, blocks),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From half of the patches in the first stage to all."""
        return (0.5, 0.6, 0.7, 0.85, 1.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the choices before their blocks."""
        from strategies.dynamic.idling import Cut, Idle

        rates = self.rates(facts.student.depth)
        learning = self.config.cut_weight > 0
        for block, rate in rates.items():
            student.entry[block] = Idle(student, self.name, block, rate, learning)
        if rates and learning:
            student.readouts[self.name] = Cut(self.name, len(rates))

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`cut`: the token-cut loss, as a mean over images and blocks."""
        said = out.readouts.get(self.name, {})
        return {"cut": said["cut"]} if "cut" in said else {}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"cut": self.config.cut_weight}

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_computed`: tokens that a block runs on, as a mean over blocks and images; none after an exit."""
        tokens = out.tokens_an_image()
        return {"tokens_computed": sum(tokens) / len(tokens)}
