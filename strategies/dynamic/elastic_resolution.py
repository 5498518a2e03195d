"""Elastic resolution: one network for several sizes of the images and several shares of their patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import (
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    GRID,
    GRID_SIZE,
    INPUT,
    TOKENS,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.blocks import checked, quarters
from strategies.facts import Facts, ModelFacts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student

Rate = Annotated[float, Field(gt=0, le=1)]


class ElasticResolutionConfig(StrategyConfig):
    """Options of `elastic_resolution`."""

    name: Literal["elastic_resolution"] = "elastic_resolution"
    """Always `elastic_resolution`."""

    sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Sides in pixels that the network learns, ascending, the last its own; whole patches. `null` = about four, five,
    six and seven sevenths of its own (128, 160, 192 and 224 of 224)."""

    keep_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.5, 0.7, 1.0)
    """Shares of the patches that go on at each of `blocks`, rounded up, ascending, the last 1. [1] = all always."""

    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks that drop patches, between attention and MLP, counted from 0; `null` = at the quarters of the network (3,
    6 and 9 of 12)."""

    size: NonNegativeInt = 0
    """Side in pixels at which the network is evaluated and deployed, one of `sizes`; 0 = its own."""

    keep_rate: Rate = 1.0
    """Share of the patches with which it is evaluated and deployed, one of `keep_rates`."""

    @model_validator(mode="after")
    def _points(self) -> ElasticResolutionConfig:
        if list(self.keep_rates) != sorted(set(self.keep_rates)) or self.keep_rates[-1] != 1:
            raise ValueError("`keep_rates` ascend, and end with 1: the others learn from the network with all patches")
        if self.sizes is not None and list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("`sizes` ascend: the others learn from the largest")
        if self.keep_rate not in self.keep_rates:
            raise ValueError(f"`keep_rate` {self.keep_rate:g} is not among `keep_rates`; write one of them")
        return self


class ElasticResolution(Strategy[ElasticResolutionConfig]):
    """Train one network for every size and keep rate; choose among them when it is deployed (SuperViT).

    Images are resized bilinearly; patches stay as large as they are, so smaller images have fewer. Each size has its
    own position embedding, which begins as the network's own, resampled. At the listed blocks the ⌈keep rate · n⌉
    patches go on that the class token attends to most, as a mean over heads; the others are dropped.

    Every step computes four passes: the largest size with all patches, the same with a drawn rate, a drawn smaller size
    with all, and that size with a drawn rate. The first has the task's loss, and each of the others adds the KL
    divergence of its answer from the first's, through which no gradient flows. (The authors' code gives the third the
    labels instead, and lets the fourth follow the third.) A step takes the time and memory of all its passes. Features
    and answers that other strategies compare are those of the first.
    """

    kind = "dynamic"
    paper = "Lin et al. 2022, arXiv:2205.11397"
    neutral: ClassVar = {"keep_rates": [1.0]}
    examples = (
        {},
        {"sizes": [32, 64], "keep_rates": [1.0], "size": 32},
        {"sizes": [64], "keep_rates": [0.4, 1.0], "keep_rate": 0.4, "blocks": [0, 2]},
    )
    knob = "size"
    Config = ElasticResolutionConfig

    def sizes(self, student: ModelFacts) -> tuple[int, ...]:
        """Sides in pixels, ascending; the last is the network's own.

        Raises:
            OptionError: if the network cannot take one of them.
        """
        patch, grid, side = student.patch_size, student.grid, student.image_size
        if student.family != "vit":
            return (side,)
        if self.config.sizes is None:
            return tuple(sorted({max(1, round(grid * sevenths / 7)) * patch for sevenths in (4, 5, 6, 7)}))
        if any(size % patch for size in self.config.sizes) or self.config.sizes[-1] != side:
            raise OptionError(
                self.name,
                "sizes",
                f"{list(self.config.sizes)} on a network for {side} px in patches of {patch} px",
                f"multiples of {patch}, the last {side}",
                "Write `null` for four sizes that fit.",
            )
        return self.config.sizes

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks that drop patches; none if all go on always.

        Raises:
            OptionError: if the network does not have them, or one is listed twice.
        """
        listed = self.config.blocks
        found = checked(self.name, "blocks", quarters(depth) if listed is None else listed, depth)
        return found if len(self.config.keep_rates) > 1 else ()

    def claims(self, facts: Facts) -> Claims:
        """Own the input, and the tokens of the dropping blocks, where the class token's attention is read. Losses see
        the pass in which nothing is missing."""
        student = facts.student
        sizes, blocks = self.sizes(student), self.blocks(student.depth)
        if student.family == "vit" and self.config.size not in (0, *sizes):
            problem = f"the network does not learn {self.config.size} px"
            raise OptionError(
                self.name,
                "size",
                problem,
                f"0, or one of {list(sizes)}",
                "Write it into `sizes`, or 0 for the largest.",
            )
        needs = at_blocks(CLASS_ATTENTION, blocks) | at_blocks(DENSE, blocks)
        return Claims(
            owns=at_blocks(TOKENS, blocks) | {Claim(INPUT)},
            needs=needs | {Claim(CLASS_TOKEN)} if blocks else needs,
            hides=at_blocks(GRID, range(min(blocks, default=student.depth) + 1, student.depth))
            | ({Claim(GRID_SIZE)} if len(sizes) > 1 else frozenset()),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """Every size, at the trained keep rate."""
        *smaller, largest = self.sizes(facts.student)
        return (*smaller, 0 if self.config.size in (0, largest) else largest)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the passes in the place of the single one, and the choice of patches at its blocks."""
        from strategies.backbone import VisionTransformerStudent
        from strategies.dynamic.elastic_passes import ElasticPasses, Keep, size_positions

        sizes, c = self.sizes(facts.student), self.config
        positions = size_positions(student.model, sizes[:-1], facts.student.patch_size)
        student.extras[self.name] = positions
        keep = Keep()
        for block in self.blocks(facts.student.depth):
            student.tokens[block] = keep
        assert isinstance(student, VisionTransformerStudent), "`claims` refuse other networks"
        student.whole = ElasticPasses(
            self.name, sizes, c.keep_rates, (c.size or sizes[-1], c.keep_rate), positions, keep
        )

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`others`: KL divergence of the smaller passes from the largest, one added to another."""
        from strategies.dynamic.elastic_passes import others_loss

        return {"others": others_loss(out.readouts[self.name], out.logits)}

    def measure(self, out: Output) -> dict[str, float]:
        """`tokens_computed`: tokens that a block runs on, as a mean over blocks and images; none after an exit."""
        tokens = out.tokens_an_image()
        return {"tokens_computed": sum(tokens) / len(tokens)}
