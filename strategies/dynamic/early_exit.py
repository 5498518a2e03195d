"""Early exit: easy images leave the network before its last block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import (
    DENSE,
    DEPTH,
    EXITS,
    GRID,
    PLACED,
    TEACHER_LOGITS,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.blocks import quarters
from strategies.facts import Facts
from strategies.ways_out import Target, WaysOut

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


TARGETS: tuple[Literal["target_macs", "target_accuracy"], ...] = ("target_macs", "target_accuracy")


def _unused(value: object) -> bool:
    return value is None


def _default_threshold(given: dict[str, Any]) -> float | None:
    """A target leaves no threshold behind, not even the default."""
    return 0.9 if all(given.get(option) is None for option in TARGETS) else None


class EarlyExitConfig(StrategyConfig):
    """Options of `early_exit`."""

    name: Literal["early_exit"] = "early_exit"
    """Always `early_exit`."""

    blocks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks with an exit after them, counted from 0; `null` = after a quarter, half and three quarters of the
    network."""

    head: Literal["linear", "conv_attention"] = "linear"
    """`linear`: LayerNorm and a linear layer on the class token (on the mean patch where there is none).
    `conv_attention` reads the patches too: exits in the first half of the network through a depth-wise convolution,
    those behind it through attention between means of 2 × 2 patches."""

    # Options that came later are left out of what names a stage where they are not used.
    target_macs: Annotated[float | None, Field(gt=0, lt=1, exclude_if=_unused)] = None
    """Find the threshold at the end of the stage: the highest with which an image costs, on average over the validation
    images, at most this share of the MACs that it costs without early exits. Instead of `threshold`."""

    target_accuracy: Annotated[float | None, Field(gt=0, le=1, exclude_if=_unused)] = None
    """Find the threshold at the end of the stage: the one with the fewest expected MACs that keeps at least this share
    of the top-1 that the network has on the validation images when no image leaves early (0.99 of 80 % = 79.2 %).
    Instead of `threshold`."""

    threshold: Annotated[float | None, Field(ge=0, le=1, default_factory=_default_threshold)]
    """An image leaves where the largest softmax probability exceeds this; 1 = no image leaves early. `null` where a
    target finds it."""

    distill: Literal["none", "last", "teacher"] = "none"
    """Whom the exits also imitate: nobody, the network's own last logits, or the teacher's logits."""

    @model_validator(mode="after")
    def _one_sets_the_threshold(self) -> EarlyExitConfig:
        set_by = [f"`{option}`" for option in ("threshold", *TARGETS) if getattr(self, option) is not None]
        if len(set_by) > 1:
            raise ValueError(f"{' and '.join(set_by)} all say when images leave; keep one of them")
        if not set_by:
            raise ValueError("`threshold` is `null`, and no target finds one; give it a number, or set `target_macs`")
        return self


class EarlyExit(Strategy[EarlyExitConfig]):
    """Exit heads after some blocks; an image leaves at the first that is confident (multi-exit ViT).

    In training every image passes every exit, and the loss is the task's cross-entropy at each, weighted by depth. In
    evaluation the images that left are taken out of the batch, so that the rest is computed without them.

    With a target the threshold is found at the end of the stage, one for all exits: the confidences of all validation
    images at all exits are recorded once in the network that is kept, and every threshold that makes a difference is
    looked at. It is saved with the weights. Until then, evaluations run with 1. A target that no threshold meets is met
    as nearly as possible, and the stage's result says so. Costs are counted as `macs` is; where they differ between
    images that leave by the same exit, as their mean over 16 images. What is reported afterwards of the same validation
    images is that much optimistic as one number was fitted to them.
    """

    kind = "dynamic"
    paper = "Bakhtiarnia et al. 2021, arXiv:2106.15183; distillation as in LGViT, Xu et al. 2023, arXiv:2308.00255"
    version = 2
    neutral: ClassVar = {"threshold": 1.0}
    examples = (
        {"blocks": [1]},
        {"blocks": [0, 2], "threshold": 0.15, "distill": "last"},
        {"blocks": [1, 2], "threshold": 0.15, "distill": "teacher"},
        {"blocks": [0, 2], "head": "conv_attention", "threshold": 0.15},
        {"blocks": [0, 1], "target_macs": 0.6},
    )
    knob = "threshold"
    targets = tuple(TARGETS)
    Config = EarlyExitConfig
    blocks: tuple[int, ...]
    """Blocks with an exit; known once `wrap` has seen the network."""
    share: float = 1.0
    """Weight that makes the losses of all heads a mean; set once `wrap` has seen the network."""

    def exits(self, depth: int) -> tuple[int, ...]:
        """Blocks with an exit, ascending.

        Raises:
            OptionError: if there is no such block, or only the network's own head follows it.
        """
        blocks = self.config.blocks or tuple(max(block - 1, 0) for block in quarters(depth))
        for block in blocks:
            if block >= depth - 1:
                problem = f"there is no block {block}" if block >= depth else f"block {block} is the last one"
                raise OptionError(
                    self.name,
                    "blocks",
                    problem,
                    f"blocks from 0 to {depth - 2}",
                    "An exit after the last block would be the network's own head: leave it out.",
                )
        return tuple(sorted(set(blocks)))

    def claims(self, facts: Facts) -> Claims:
        """Own the depth seam at the exits, and offer what they say; need the teacher's logits only to imitate them, and
        the whole grid only to read it."""
        blocks = self.exits(facts.student.depth)
        needs = frozenset({Claim(TEACHER_LOGITS)} if self.config.distill == "teacher" else ())
        if self.config.head == "conv_attention":
            behind = {block + 1 for block in blocks}
            needs |= at_blocks(GRID, blocks) | at_blocks(DENSE, blocks) | at_blocks(PLACED, behind)
        return Claims(
            owns=at_blocks(DEPTH, blocks),
            needs=needs,
            offers=frozenset({Claim(EXITS)}),
        )

    def sweep(self, facts: Facts) -> tuple[float, ...]:
        """From bold to 1, where no image leaves early. Most networks are sure of most images, so steps shrink."""
        return (0.5, 0.7, 0.9, 0.99, 1.0)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put a head at each exit."""
        from torch import nn

        from strategies.dynamic.exit_grid_head import grid_exit
        from strategies.dynamic.exit_head import LinearExit

        depth, threshold = facts.student.depth, self.config.threshold
        self.blocks = self.exits(depth)
        heads: dict[int, LinearExit] = {}
        if self.config.head == "conv_attention":
            for block in self.blocks:
                heads[block] = grid_exit(student.model, threshold, shallow=2 * (block + 1) <= depth)
        else:
            heads = {block: LinearExit(student.model, threshold) for block in self.blocks}
        student.extras[self.name] = nn.ModuleDict({str(block): head for block, head in heads.items()})
        student.depth.update(heads)
        self.share = depth / (depth + sum(block + 1 for block in self.blocks))

    def ways_out(self, student: Student) -> WaysOut | None:
        """The exits, where a target finds the threshold."""
        from strategies.dynamic.exit_head import ExitWays

        exits: Any = student.extras[self.name]
        for option in TARGETS:
            wanted = getattr(self.config, option)
            if wanted is not None:
                heads = {int(block): head for block, head in exits.items()}
                return ExitWays(student, heads, Target(option, wanted))
        return None

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`exits`: cross-entropy of each exit; `distill`: KL divergence from whom they imitate. Both are sums over the
        exits, each weighted by its depth as a share of the network's; `weights` makes a mean of them.
        """
        from strategies.dynamic.exit_head import exit_cross_entropy, exit_divergence

        depth = len(out.num_tokens)
        terms = {"exits": exit_cross_entropy(out.exits, target, depth)}
        if self.config.distill == "last":
            terms["distill"] = exit_divergence(out.exits, out.logits.detach(), depth)
        elif self.config.distill == "teacher":
            assert teacher is not None, "`claims` asks for the teacher's logits"
            terms["distill"] = exit_divergence(out.exits, teacher.logits, depth)
        return terms

    def weights(self) -> dict[str, float]:
        """The loss is the mean over all heads, the final one included, weighted by their blocks' numbers."""
        return {"task": self.share, "exits": self.share, "distill": self.share}

    def measure(self, out: Output) -> dict[str, float]:
        """`exited_<block>`: share of the images that left after this block; the rest went through the network."""
        if out.exit_block is None:
            return {}
        return {f"exited_{block}": float((out.exit_block == block).float().mean()) for block in self.blocks}
