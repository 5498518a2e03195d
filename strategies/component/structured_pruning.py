"""Structured pruning: attention heads and MLP channels leave the network for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import SHAPES, Claims, OptionError, Strategy, at_blocks
from strategies.cost import network_macs, shapes_of
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class StructuredPruningConfig(StrategyConfig):
    """Options of `structured_pruning`."""

    name: Literal["structured_pruning"] = "structured_pruning"
    """Always `structured_pruning`."""

    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share to remove of the heads and of the MLP channels that the stage starts with; 0 = none. With `scope: global`
    the share of their parameters. Write either `ratio` or `target_macs`."""

    target_macs: float | None = Field(default=None, gt=0)
    """MACs an image that the network may cost, without what other strategies add or save. As little as possible is
    removed to get there; nothing, if an earlier stage got there."""

    what: tuple[Literal["heads", "mlp"], ...] = Field(default=("heads", "mlp"), min_length=1)
    """What is removed: attention heads (their width stays), MLP channels, or both."""

    importance: Literal["magnitude"] = "magnitude"
    """What decides who goes. `magnitude`: the root mean square of a group's weights, so that large groups have no
    advantage."""

    scope: Literal["per_block", "isomorphic", "global"] = "isomorphic"
    """Who competes. `per_block`: each block loses the same share. `isomorphic`: all heads of the network compete, and
    all MLP channels do. `global`: heads and channels compete in one ranking."""

    round_to: PositiveInt = 8
    """MLP widths are rounded to the nearest multiple of this many channels, halves up, because hardware multiplies
    matrices in tiles; never above the width that was there. 1 = no rounding."""

    @model_validator(mode="after")
    def _one_goal(self) -> StructuredPruningConfig:
        if (self.ratio is None) == (self.target_macs is None):
            raise ValueError("write either `ratio` (share removed, 0 to below 1) or `target_macs` (MACs an image)")
        if len(set(self.what)) != len(self.what):
            raise ValueError("`what` names the same thing twice; write [heads], [mlp] or [heads, mlp]")
        return self


class StructuredPruning(Strategy[StructuredPruningConfig]):
    """Remove the least important heads and MLP channels before training goes on.

    A group is what must leave together: of a head its rows of query, key and value and its columns of the projection;
    of an MLP channel its row of the first layer and its column of the second (Li et al. 2017, arXiv:1608.08710, for the
    magnitude; Fang et al. 2023, arXiv:2301.12900, for groups; Fang et al. 2024, arXiv:2407.04616, for `isomorphic`).
    The tensors shrink: nothing is masked. The network computes what it would with the removed heads' and channels'
    contribution set to zero.

    Each block keeps its best head and its best `round_to` channels. A network that an earlier stage has pruned is
    pruned further, and `ratio` is a share of what is left.
    """

    kind = "component"
    paper = "Fang et al. 2024, arXiv:2407.04616"
    neutral: ClassVar = {"ratio": 0.0}
    examples = ({"ratio": 0.5}, {"ratio": 0.4, "scope": "per_block", "what": ["mlp"]}, {"target_macs": 4e6})
    once = True
    Config = StructuredPruningConfig

    def claims(self, facts: Facts) -> Claims:
        """Owns the shapes of all blocks."""
        self._check_target(facts)
        return Claims(owns=at_blocks(SHAPES, range(facts.student.depth)))

    def _check_target(self, facts: Facts) -> None:
        network, target = facts.student, self.config.target_macs
        if target is None or network.family != "vit" or not network.can_prune:
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
        now = shapes_of(network, facts.shapes)
        # Up to what the unpruned network costs: one that an earlier stage (or this stage, before its checkpoint was
        # written) brought below the target has nothing left to do.
        highest = network_macs(network, shapes_of(network, {}))
        lowest = network_macs(network, {b: self._smallest(heads, hidden) for b, (heads, hidden) in now.items()})
        if not lowest <= target <= highest:
            raise OptionError(
                self.name,
                "target_macs",
                f"{target:.6g} MACs an image cannot be reached by removing {' and '.join(self.config.what)}",
                f"{lowest:.6g} to {highest:.6g}",
                "Write a value in this range, or change the network's depth or width.",
            )

    def _smallest(self, num_heads: int, mlp_hidden: int) -> tuple[int, int]:
        """The least that a block keeps."""
        c = self.config
        return (
            1 if "heads" in c.what else num_heads,
            min(c.round_to, mlp_hidden) if "mlp" in c.what else mlp_hidden,
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Choose by importance, cut, and record the shapes."""
        from strategies.component import group_importance, pruning_choice
        from strategies.shapes import keep_channels, keep_heads

        c = self.config
        blocks = student.model.blocks
        candidates = pruning_choice.Candidates(
            heads=[group_importance.head_magnitude(b.attn) for b in blocks],
            channels=[group_importance.channel_magnitude(b.mlp) for b in blocks],
            head_size=4 * facts.student.embed_dim * facts.student.head_dim,
            channel_size=2 * facts.student.embed_dim,
            what=frozenset(c.what),
            round_to=c.round_to,
        )
        if c.ratio is not None:
            kept = pruning_choice.choose(candidates, c.scope, c.ratio)
        else:
            assert c.target_macs is not None, "the options hold one of both"
            kept = pruning_choice.choose_for_macs(candidates, c.scope, c.target_macs, facts.student)
        for i, (block, (heads, channels)) in enumerate(zip(blocks, kept, strict=True)):
            keep_heads(block.attn, heads)
            keep_channels(block.mlp, channels)
            student.shapes[i] = (len(heads), len(channels))
