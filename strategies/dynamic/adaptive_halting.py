"""Adaptive halting: every token decides after every block whether it has been computed enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from specs.strategy import StrategyConfig
from strategies.api import DENSE, GRID, PLACED, TOKENS, Claims, OptionError, Strategy, at_blocks
from strategies.dynamic.pooling import refuse_other_pooling
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


class AdaptiveHaltingConfig(StrategyConfig):
    """Options of `adaptive_halting`."""

    name: Literal["adaptive_halting"] = "adaptive_halting"
    """Always `adaptive_halting`."""

    gamma: Annotated[float, Field(ge=0)] = 10.0
    """Slope of the halting score in the tokens' first channel."""

    beta: float = 30.0
    """Shift of the halting score: the larger, the later tokens halt. With `gamma` 0 and 1000 none does."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """A token halts where the sum of its scores exceeds this; 1 − ε in the paper."""

    depth_prior: Annotated[float, Field(gt=0)] | None = None
    """Block, counted from 1, around which halting is to happen; `null` = after two thirds of the network (8 of 12)."""

    ponder_weight: Annotated[float, Field(ge=0)] = 5e-4
    """Weight of the ponder loss: blocks that a token passes, and its remainder, as a mean over tokens."""

    prior_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the KL divergence of the scores' distribution over blocks from a normal one around `depth_prior`."""


class AdaptiveHalting(Strategy[AdaptiveHaltingConfig]):
    """Let each token leave the computation as soon as its halting scores add up to the threshold (A-ViT).

    After block l every token gets h_l = σ(γ · x_l[0] − β), from its own first channel; the last block's counts as 1.
    With c_l = h_1 + … + h_l, the token halts at the first block with c_l > threshold, and its output is

        Σ_{l before} h_l · x_l + (1 − c before halting) · x_halting

    which the final norm and the classifier read. There are no parameters. The loss is CE + ponder_weight · mean over
    tokens of (blocks passed + remainder) + prior_weight · KL(normal around `depth_prior` ‖ mean score of each block).

    Patches that have halted are seen by no other token: masked in training, taken out in evaluation. Class,
    distillation and register tokens are weighed like patches, but others may go on looking at them after they have
    halted. Where the classifier reads the class token, nothing that happens after all of these have halted can change
    the answer, so evaluation then drops the image's patches too.
    """

    kind = "dynamic"
    paper = "Yin et al. 2022, arXiv:2112.07658"
    neutral: ClassVar = {"gamma": 0.0, "beta": 1000.0}
    examples = (
        {"gamma": 5.0, "beta": 1.0},
        {"gamma": 2.0, "beta": 0.5, "threshold": 0.8, "depth_prior": 2.0, "prior_weight": 0.1},
    )
    knob = "threshold"
    Config = AdaptiveHaltingConfig

    def claims(self, facts: Facts) -> Claims:
        """Own the tokens behind the first block. Features are compared in training, where every token is at its
        place."""
        student = facts.student
        refuse_other_pooling(self.name, "gamma", student, "no value with this pooling")
        if self.config.depth_prior is not None and student.family == "vit" and self.config.depth_prior > student.depth:
            raise OptionError(
                self.name,
                "depth_prior",
                f"there are {student.depth} blocks",
                f"above 0, at most {student.depth}",
                "Write `null` for two thirds of the network.",
            )
        behind = range(1, student.depth)
        return Claims(
            owns=at_blocks(TOKENS, behind),
            needs=at_blocks(DENSE, behind),
            hides=at_blocks(GRID, behind) | at_blocks(DENSE, behind),
            offers=at_blocks(PLACED, behind[:1]),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From halting early to the paper's threshold."""
        return (0.3, 0.5, 0.7, 0.9, 0.99)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Score tokens after every block."""
        from strategies.dynamic.halting import Halt, Pondered

        depth, c = facts.student.depth, self.config
        for block in range(1, depth + 1):
            student.entry[block] = Halt(student, self.name, c.gamma, c.beta, c.threshold, last=block == depth)
        prior = 2 * depth / 3 if c.depth_prior is None else c.depth_prior
        student.readouts[self.name] = Pondered(self.name, prior)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`ponder`: blocks and remainder, as a mean over tokens; `prior`: KL(normal ‖ mean scores)."""
        return out.readouts[self.name]

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"ponder": self.config.ponder_weight, "prior": self.config.prior_weight}

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_computed`: tokens that a block runs on, as a mean over blocks and images; none after an exit."""
        tokens = out.tokens_an_image()
        return {"tokens_computed": sum(tokens) / len(tokens)}
