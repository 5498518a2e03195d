"""Coarse to fine: a first look at few large patches; only unclear images, and there only what matters, in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import (
    CLASS_ATTENTION,
    CLASS_TOKEN,
    DENSE,
    DEPTH,
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
from strategies.facts import Facts, ModelFacts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


class CoarseToFineConfig(StrategyConfig):
    """Options of `coarse_to_fine`."""

    name: Literal["coarse_to_fine"] = "coarse_to_fine"
    """Always `coarse_to_fine`."""

    coarse: PositiveInt | None = None
    """Patches along a side at first; the network's own number must be a multiple. `null` = half of that (7 of 14), so
    that a patch is refined into 4."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the coarse patches that are refined, rounded up. 1 = all."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """An image is done after the coarse pass where the largest softmax probability reaches this; 1 = no image is."""

    reuse: bool = True
    """Add what the coarse pass found to the patches that are refined."""

    start: NonNegativeInt | None = None
    """Block from which on the class token's attention is averaged, counted from 0; `null` = from a quarter of the
    network (3 of 12)."""

    warmup: Annotated[float, Field(ge=0, le=1)] = 2 / 3
    """Share of the stage in which all patches are refined; 0 = `alpha` from the first step."""


class CoarseToFine(Strategy[CoarseToFineConfig]):
    """Classify images of coarse patches first, and refine the informative ones where that is not enough (CF-ViT).

    The first pass sees the images shrunk to g×g patches, with a position embedding of its own that begins as the
    network's, resampled. Over its blocks, Ā ← 0.99·Ā + 0.01·A averages the class token's attention A. Images whose
    confidence reaches the threshold are done, and leave the batch. Of the others the ⌈alpha · g²⌉ patches with the
    largest Ā are replaced by their children of full resolution; the rest stay as they were embedded, coarse. The same
    blocks then run on this mixture. With `reuse`, MLP(LN(x)) is added to the children, x being their parent after the
    coarse pass.

    The loss is CE(fine) + KL(coarse ‖ fine), through whose target no gradient flows. In training every image takes both
    passes. Features that other strategies compare are those of the fine pass, where a coarse patch stands at the places
    of all its children; networks that average patches count it as often.
    """

    kind = "dynamic"
    paper = "Chen et al. 2023, arXiv:2203.03821"
    neutral: ClassVar = {"alpha": 1.0, "threshold": 1.0, "reuse": False}
    examples = (
        {"warmup": 0.0, "threshold": 0.15},
        {"coarse": 2, "alpha": 0.3, "reuse": False, "start": 0, "warmup": 0.0, "threshold": 1.0},
        {"alpha": 1.0, "threshold": 0.12},
    )
    knob = "threshold"
    Config = CoarseToFineConfig

    def grid(self, student: ModelFacts) -> int:
        """Coarse patches along a side.

        Raises:
            OptionError: if the network's patches do not group into them.
        """
        fine = student.grid
        if student.family != "vit":
            return 1
        coarse = fine // 2 if self.config.coarse is None else self.config.coarse
        fitting = [g for g in range(1, fine) if fine % g == 0]
        if coarse not in fitting:
            raise OptionError(
                self.name,
                "coarse",
                f"{coarse if self.config.coarse else 'half'} of the {fine} patches along a side of `{student.model}`",
                " or ".join(map(str, fitting)) or "no number",
                "Write one of them, or change `img_size` in the student's `args`.",
            )
        return coarse

    def start(self, depth: int) -> int:
        """Block from which on attention is averaged.

        Raises:
            OptionError: if there is no such block.
        """
        start = depth // 4 if self.config.start is None else self.config.start
        if start >= depth > 0:
            way_out = "Write `null` for a quarter of the network."
            raise OptionError(self.name, "start", f"there is no block {start}", f"blocks 0 to {depth - 1}", way_out)
        return start

    @property
    def choosing(self) -> bool:
        """Whether some patches stay coarse."""
        return self.config.alpha < 1

    def claims(self, facts: Facts) -> Claims:
        """Own the input, and which images go on. Where the coarse pass is looked at, all of its patches must come
        through, so this strategy alone changes tokens; where patches stay coarse, the fine pass has no grid."""
        student = facts.student
        depth = student.depth
        self.grid(student)
        start, every = self.start(depth), range(depth)
        owns = at_blocks(DEPTH, every) | {Claim(INPUT)}
        needs = hides = frozenset[Claim]()
        if self.choosing or self.config.reuse:
            owns |= at_blocks(TOKENS, every)
            needs |= at_blocks(GRID, every) | at_blocks(DENSE, every)
        if self.choosing:
            needs |= at_blocks(CLASS_ATTENTION, range(start, depth)) | {Claim(CLASS_TOKEN)}
            hides |= at_blocks(GRID, every)
        return Claims(owns, needs, hides | {Claim(GRID_SIZE)})

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From bold to 1, where every image takes both passes."""
        return (0.3, 0.5, 0.7, 0.9, 1.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the two passes in the place of the single one."""
        from strategies.backbone import VisionTransformerStudent
        from strategies.dynamic.refinement import CoarsePass, HandOver, Refine, Watch

        c, network = self.config, facts.student
        coarse = CoarsePass(student.model, self.grid(network), reuse=c.reuse)
        student.extras[self.name] = coarse
        assert isinstance(student, VisionTransformerStudent), "`claims` refuse other networks"
        student.whole = Refine(self.name, coarse, network.grid, network.image_size, c.alpha, c.threshold)
        if self.choosing:
            for block in range(self.start(network.depth), network.depth):
                student.tokens[block] = Watch(self.name)
        if self.choosing or c.reuse:
            student.heads.append(HandOver(self.name))

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`coarse`: KL divergence of the coarse pass's answer from the fine pass's."""
        from strategies.distillation.logits import soft_distillation

        return {"coarse": soft_distillation(out.readouts[self.name]["coarse_logits"], out.logits.detach(), 1.0)}

    def at(self, student: Student, progress: float) -> None:
        """Refine all patches until the warm-up is over."""
        student.whole.alpha = 1.0 if progress < self.config.warmup else self.config.alpha

    def measure(self, out: Output) -> dict[str, float]:
        """`done_coarse`: share of the images that were done after the coarse pass."""
        readout = out.readouts.get(self.name, {})
        return {"done_coarse": float(readout["done"].float().mean())} if "done" in readout else {}
