"""Structured pruning: heads, MLP channels, the tokens' channels and whole blocks leave the network for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import (
    ALIKE,
    ATTENTION,
    BLOCKS,
    MATRICES,
    MLP,
    MLP_MATRICES,
    MLP_SHAPES,
    SHAPES,
    WIDTH,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.component.pruning_goal import Goal
from strategies.cost import blocks_of, network_macs
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student
    from strategies.gradients import Gradients
    from strategies.surgery import Cut


class StructuredPruningConfig(StrategyConfig):
    """Options of `structured_pruning`."""

    name: Literal["structured_pruning"] = "structured_pruning"
    """Always `structured_pruning`."""

    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share to remove of each thing in `what`, of what the stage starts with; 0 = none. With `scope: global`, of heads
    and MLP channels the share of their parameters. Write either `ratio` or `target_macs`."""

    target_macs: float | None = Field(default=None, gt=0)
    """MACs an image that the network may cost, without what other strategies add or save. As little as possible is
    removed to get there; nothing, if an earlier stage got there."""

    what: tuple[Literal["heads", "head_width", "mlp", "embed", "depth"], ...] = Field(
        default=("heads", "mlp"), min_length=1
    )
    """What is removed. `heads`: whole attention heads. `head_width`: channels inside all heads alike, instead of whole
    heads. `mlp`: MLP channels. `embed`: channels of the tokens, in the whole network. `depth`: whole blocks; those that
    are left are counted anew. Networks that do not run in the loop (Swin, PVTv2, ConvNeXt, ResNet, …): `mlp` alone, the
    channels inside their MLPs or residual blocks."""

    importance: Literal["magnitude", "taylor", "hessian"] = "magnitude"
    """What decides who goes. `magnitude`: the root mean square of a group's weights, so that large groups have no
    advantage. `taylor`: Σ (w · ∂L/∂w)² over the group, the first-order change of the stage's loss. `hessian`:
    ½ Σ w² · E[(∂L/∂w)²], the second-order change, L being the mean loss of a micro-batch: the diagonal of the empirical
    Fisher matrix with `training.micro_batch: 1`."""

    scope: Literal["per_block", "isomorphic", "global"] = "isomorphic"
    """Who competes. `per_block`: each block loses the same share. `isomorphic`: all heads of the network compete, and
    all MLP channels do. `global`: heads and channels compete in one ranking."""

    round_to: PositiveInt = 8
    """Widths in channels are rounded to the nearest multiple of this many, halves up, because hardware multiplies
    matrices in tiles; never above the width that was there. 1 = no rounding."""

    steps: PositiveInt = 1
    """In how many steps it is removed, equal shares each, the first before training begins."""

    recover_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Epochs of training between two steps. The stage has to go on after the last."""

    calibration_images: PositiveInt = 256
    """Training images over which gradients are averaged before each step, for `taylor` and `hessian`; rounded up to
    whole batches."""

    @model_validator(mode="after")
    def _one_goal(self) -> StructuredPruningConfig:
        if (self.ratio is None) == (self.target_macs is None):
            raise ValueError("write either `ratio` (share removed, 0 to below 1) or `target_macs` (MACs an image)")
        if len(set(self.what)) != len(self.what):
            raise ValueError("`what` names the same thing twice; write for example [heads, mlp]")
        if {"heads", "head_width"} <= set(self.what):
            raise ValueError(
                "`what`: either whole `heads` leave, or channels inside all heads (`head_width`); write one"
            )
        return self


class StructuredPruning(Strategy[StructuredPruningConfig]):
    """Remove the least important heads, channels and blocks; what is left trains on.

    A group is what must leave together: of a head its rows of query, key and value and its columns of the projection;
    of an MLP channel its row of the first layer and its column of the second; of a channel of the tokens everything
    that writes or reads it, from the patch embedding to the classifier (Li et al. 2017, arXiv:1608.08710, for the
    magnitude; Molchanov et al. 2019, arXiv:1906.10771, for `taylor`; Theis et al. 2018, arXiv:1801.05787, for
    `hessian`; Fang et al. 2023, arXiv:2301.12900, for groups; Fang et al. 2024, arXiv:2407.04616, for `isomorphic`;
    Yang et al. 2021, arXiv:2110.04869, for pruning every dimension of a ViT). The tensors shrink: nothing is masked.
    Without `embed`, the network computes what it would with the removed heads', channels' and blocks' contribution set
    to zero; with it, norms go over fewer channels.

    Each block keeps its best head and its best `round_to` channels, the network at least one block. A network that an
    earlier stage has pruned is pruned further, and `ratio` is a share of what is left.

    By magnitude and in one step, it happens before the other strategies attach anything, which then see the smaller
    network. Otherwise the stage's loss says what matters: the loop cuts the network between two training steps, with
    its average and the optimiser's state, and the other strategies' modules along with it.
    """

    kind = "component"
    paper = "Fang et al. 2024, arXiv:2407.04616"
    neutral: ClassVar = {"ratio": 0.0}
    examples = (
        {"ratio": 0.5},
        {"ratio": 0.4, "scope": "per_block", "what": ["mlp"]},
        {"target_macs": 4e6},
        {"ratio": 0.5, "what": ["head_width", "mlp", "embed", "depth"]},
    )
    once = True
    Config = StructuredPruningConfig

    def __init__(self, config: StructuredPruningConfig) -> None:
        super().__init__(config)
        self.goal = Goal(frozenset(config.what), config.round_to)

    @property
    def gradual(self) -> bool:
        """Whether the loop has to cut, because gradients decide or because it goes on in steps."""
        return self.config.ratio != 0 and (self.config.importance != "magnitude" or self.config.steps > 1)

    def claims(self, facts: Facts) -> Claims:
        """Owns the shapes that change, in all blocks; the tokens' width and the number of blocks where these do."""
        student, what = facts.student, set(self.config.what)
        if student.family == "other":
            self._check_inner(facts)
            return Claims(owns=frozenset({Claim(SHAPES)}))
        self._check_head_width(facts)
        self._check_width(facts)
        self._check_target(facts)
        whole = {Claim(claim) for claim, part in ((WIDTH, "embed"), (BLOCKS, "depth")) if part in what}
        # Channels of the tokens are channels of the attention's weights, and a block takes its attention along.
        parts = ((SHAPES, what - {"mlp"}), (MLP_SHAPES, what & {"mlp"}))
        shapes = (at_blocks(claim, range(student.depth)) for claim, part in parts if part)
        owns = frozenset[Claim]().union(whole, *shapes)
        if self.gradual:
            # What is cut while it trains must have the form that is known how to cut.
            owns |= at_blocks(MATRICES, range(student.depth)) | at_blocks(MLP_MATRICES, range(student.depth))
            if what & {"heads", "head_width"}:
                owns |= at_blocks(ATTENTION, range(student.depth))
            if "mlp" in what:
                owns |= at_blocks(MLP, range(student.depth))
        differ = self.config.ratio != 0 and self.config.scope != "per_block" and bool(what & {"heads", "mlp"})
        return Claims(owns=owns, hides=at_blocks(ALIKE, range(student.depth)) if differ else frozenset())

    def _check_inner(self, facts: Facts) -> None:
        """Outside of the loop, nothing but channels inside blocks can be cut, and their cost has no closed form."""
        name = facts.student.model
        if self.config.target_macs is not None:
            problem = f"`{name}` does not run in the loop, and the closed form does not hold its cost"
            raise OptionError(self.name, "target_macs", problem, "none for this network", "Write `ratio` instead.")
        others = [part for part in self.config.what if part != "mlp"]
        if others and facts.student.num_inner_widths:
            problem = f"of `{name}` only channels inside its blocks can be cut, not {' and '.join(others)}"
            raise OptionError(self.name, "what", problem, "[mlp] for this network", "Write `what: [mlp]`.")

    def _check_head_width(self, facts: Facts) -> None:
        if "head_width" in self.config.what and facts.student.qk_norm:
            raise OptionError(
                self.name,
                "what",
                f"`{facts.student.model}` norms queries and keys over the width of a head",
                "heads, mlp, embed and depth for this network",
                "Write `heads` for `head_width`.",
            )

    def _check_width(self, facts: Facts) -> None:
        if "embed" in self.config.what and facts.student.global_pool in ("map", "prr"):
            raise OptionError(
                self.name,
                "what",
                f"`{facts.student.model}` has an attention pool, which nobody knows how to narrow",
                "heads, head_width, mlp and depth for this network",
                "Leave `embed` out, or set `global_pool: avg` in the network's `args`.",
            )

    def _check_target(self, facts: Facts) -> None:
        network, target = facts.student, self.config.target_macs
        if target is None or not network.can_prune:
            return  # what the network lacks is the claims' affair
        if (
            network.global_pool in ("map", "prr")
            or network.num_patches * network.patch_size**2 != network.image_size**2
        ):
            raise OptionError(
                self.name,
                "target_macs",
                f"`{network.model}` has an attention pool or a convolutional stem, which the closed form does not hold",
                "none for this network",
                "Write `ratio` instead.",
            )
        # A network that an earlier stage (or this one, before its checkpoint was written) brought below the target has
        # nothing left to do.
        highest = network_macs(network, blocks_of(network, facts.shapes))
        lowest = self.goal.macs(facts, 1.0)
        if target < lowest or (target > highest and not facts.shapes):
            raise OptionError(
                self.name,
                "target_macs",
                f"{target:.6g} MACs an image cannot be reached by removing {' and '.join(self.config.what)}",
                f"{lowest:.6g} to {highest:.6g}",
                "Write a value in this range, or change the network's depth or width.",
            )

    def leaves(self, facts: Facts) -> Facts:
        """The tokens' width and the number of blocks are known before training; of heads and MLP channels, how many are
        left if all blocks lose alike."""
        if facts.student.family != "vit" or not facts.student.can_prune:
            return facts
        if self.config.ratio is not None:
            ratio = self.config.ratio
        else:
            assert self.config.target_macs is not None, "the options hold one of both"
            ratio = self.goal.ratio_for(facts, self.config.target_macs)
        return facts.further(self.goal.shapes(facts, ratio)) if ratio else facts

    def moments(self) -> tuple[float, ...]:
        """Every `recover_epochs` from the start, if the loop has to cut."""
        return tuple(i * self.config.recover_epochs for i in range(self.config.steps)) if self.gradual else ()

    def calibration(self) -> int:
        """Gradients decide, or they do not."""
        return 0 if self.config.importance == "magnitude" else self.config.calibration_images

    def compares_images(self) -> bool:
        """The squared gradient of a micro-batch's mean loss has another noise for another size."""
        return self.config.importance == "hessian" and self.config.ratio != 0

    def wrap(self, student: Student, facts: Facts) -> None:
        """Cut, where magnitude decides and everything goes at once."""
        from strategies.surgery import apply

        if self.gradual:
            return
        from strategies.carry import axes_of

        found = self.cut(student, facts, 0, None)
        if found is not None:
            apply(student.model, axes_of(student), found)
            student.shapes = found.shapes

    def cut(self, student: Student, facts: Facts, moment: int, gradients: Gradients | None) -> Cut | None:
        """Choose by importance what stays at this step."""
        from strategies.component import pruning_cut

        share = (moment + 1) / self.config.steps
        if facts.student.family == "other":
            return pruning_cut.inner(student, self.config, moment, gradients)
        return pruning_cut.transformer(student, facts, self.config, self.goal, share, gradients)
