"""Adaptive computation: every image decides which heads, halves of blocks and patches it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import (
    ATTENTION,
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    KEYS,
    MLP,
    PROJECTIONS,
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

Share = Annotated[float, Field(gt=0, le=1)]


class AdaptiveComputationConfig(StrategyConfig):
    """Options of `adaptive_computation`."""

    name: Literal["adaptive_computation"] = "adaptive_computation"
    """Always `adaptive_computation`."""

    heads: Share | None = 0.5
    """Share of the attention heads that images are to use on average; `null` = all, without a decision."""

    layers: Share | None = 0.5
    """Share of the blocks' halves (attention, MLP) that images are to pass on average; `null` = all."""

    tokens: Share | None = 0.5
    """Share of the patches that are to pass a block on average; `null` = all."""

    start: PositiveInt = 1
    """First block that decides, counted from 0."""

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """In evaluation, whatever has a probability to be used of more than this is used. 0 = everything."""

    temperature: Annotated[float, Field(gt=0)] = 5.0
    """Of the Gumbel-sigmoid; it shapes the decisions' gradients, not how often they fall."""

    usage_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the usage losses beside the task's cross-entropy, which keeps weight 1."""

    @model_validator(mode="after")
    def _decides_something(self) -> AdaptiveComputationConfig:
        if self.heads is None and self.layers is None and self.tokens is None:
            raise ValueError("`heads`, `layers` and `tokens` are all `null`, so nothing is decided; give one a share")
        return self


class AdaptiveComputation(Strategy[AdaptiveComputationConfig]):
    """Before each block, linear policies say which heads, halves and patches of it each image uses (AdaViT).

    Heads and halves are decided from the class token, patches each from itself. What a patch does not pass leaves it
    as it is, and nobody sees it there; it may take part in the next block again. A head that is not used puts out 0. In
    training decisions are drawn (Gumbel-sigmoid, straight-through); in evaluation everything is used whose
    probability exceeds `threshold`. Networks start with a probability of 0.95 for everything.

    The loss is CE + usage_weight · (|h − heads| + |l − layers| + (t − tokens)²), with h, l and t the shares used,
    averaged over images and blocks.

    Evaluation computes only what is used: the patches of those images that pass a half are packed, queries, keys,
    values and attention of unused heads are left out. Attention's output projection runs over all heads, with zeros
    where one is unused: taking it apart costs more time than it saves.
    """

    kind = "dynamic"
    paper = "Meng et al. 2022, arXiv:2111.15668"
    neutral: ClassVar = {"threshold": 0.0}
    examples = (
        {"threshold": 0.95},
        {"heads": None, "tokens": 0.3, "start": 2, "threshold": 0.95},
        {"layers": None, "tokens": None, "threshold": 0.95},
    )
    knob = "threshold"
    Config = AdaptiveComputationConfig

    def claims(self, facts: Facts) -> Claims:
        """Own attention, MLP and tokens of its blocks. Between blocks every patch is at its place."""
        depth, start = facts.student.depth, self.config.start
        if start >= depth:
            raise OptionError(
                self.name,
                "start",
                f"there is no block {start}",
                f"blocks from 1 to {depth - 1}",
                "Write 1 to decide before every block but the first.",
            )
        blocks = range(start, depth)
        return Claims(
            owns=at_blocks(ATTENTION, blocks) | at_blocks(TOKENS, blocks) | at_blocks(MLP, blocks),
            needs=at_blocks(DENSE, blocks) | {Claim(CLASS_TOKEN)},
            hides=at_blocks(KEYS, blocks) | at_blocks(CLASS_ATTENTION, blocks) | at_blocks(PROJECTIONS, blocks),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From using little to using everything."""
        return (0.9, 0.7, 0.5, 0.3, 0.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put policies before the blocks, and their halves in place of the plain ones."""
        from torch import nn

        from strategies.dynamic.policies import AttentionHalf, MlpHalf, Policies, Report, Usage

        c = self.config
        like = next(student.model.parameters())
        policies = {}
        for block in range(c.start, facts.student.depth):
            num_heads = student.model.blocks[block].attn.num_heads
            policy = Policies(
                student.model.embed_dim,
                num_heads if c.heads is not None else 0,
                layers=c.layers is not None,
                tokens=c.tokens is not None,
                temperature=c.temperature,
                threshold=c.threshold,
            )
            policies[str(block)] = policy.to(like.device, like.dtype)
            student.first_half[block] = AttentionHalf(student, self.name, block, policy)
            student.second_half[block] = MlpHalf(self.name)
        student.extras[self.name] = nn.ModuleDict(policies)
        targets = {"heads": c.heads, "layers": c.layers, "tokens": c.tokens}
        student.readouts[self.name] = Usage(self.name, targets, len(policies))
        student.heads.append(Report(self.name, len(policies)))

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`heads`, `layers`, `tokens`: how far use is from its target; only those that are decided."""
        return out.readouts[self.name]

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return dict.fromkeys(("heads", "layers", "tokens"), self.config.usage_weight)

    def measure(self, out: Output) -> dict[str, float]:
        """`heads`, `layers`, `tokens`: shares that images decide to use in the deciding blocks, as far as they are
        decided; what the losses hold against the targets. Nothing where images leave early: of those that left nobody
        knows at the end what they used."""
        c = self.config
        decided = [name for name in ("heads", "layers", "tokens") if getattr(c, name) is not None]
        if c.threshold == 0:
            return dict.fromkeys(decided, 1.0)
        used = out.readouts.get(self.name, {}).get("used")
        if used is None or out.exit_block is not None:
            return {}
        shares = dict(zip(("heads", "layers", "tokens"), used.mean(dim=0).tolist(), strict=True))
        return {name: shares[name] for name in decided}
