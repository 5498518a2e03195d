"""Weight sharing: consecutive blocks use the same matrices."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import ALIKE, DENSE, GRID, MIXING, MLP, TOKENS, Claims, OptionError, Strategy, at_blocks
from strategies.blocks import checked
from strategies.component.block_matrices import PARTS, matrix_claims, names_of
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class WeightSharingConfig(StrategyConfig):
    """Options of `weight_sharing`."""

    name: Literal["weight_sharing"] = "weight_sharing"
    """Always `weight_sharing`."""

    group: PositiveInt = 2
    """How many blocks in a row share their matrices; the last group may be smaller. 1 = none."""

    transform: bool = True
    """Let each sharing block change what the shared matrices do: heads are mixed before and after the softmax, and a
    depth-wise convolution runs before the MLP. It must see the whole patch grid; `false` combines with strategies that
    merge, drop or replace."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks that share, counted from 0; a gap ends a group. `null` = all."""


class WeightSharing(Strategy[WeightSharingConfig]):
    """Share the linear layers of attention and MLP among consecutive blocks (weight multiplexing of MiniViT).

    Norms, LayerScale and drop path stay each block's own. A group starts with the weights of its first block. With
    `transform`, block l has matrices F, G [heads, heads] and a depth-wise convolution C over the patch grid of its own:

        A_h = Σ_k G_hk · softmax_j(Σ_k' F_kk' · q_k' kᵀ_k' / √E),    MLP(y + C(y)),  y = LN(x)

    F and G start as the identity, C as 0, and C is 7×7 and added to its input, as in the authors' Mini-Swin. Prefix
    tokens pass C unchanged. Attention is no fused kernel then.

    Shared weights count once: as parameters, for the optimiser, and in checkpoints, where the group's first block holds
    them. MACs stay those of the plain network; `transform` adds 2·H²·N² for the mixing and 49·n·D for the convolution a
    block (H heads, N tokens, n patches, width D): what shrinks is the file and the memory for weights. A later stage
    that starts from the shared network has to list the strategy, too.
    """

    kind = "component"
    version = 2
    paper = "Zhang et al. 2022, arXiv:2204.07154"
    neutral: ClassVar = {"group": 1}
    examples = ({}, {"group": 3, "transform": False}, {"group": 2, "blocks": [1, 2, 3]})
    Config = WeightSharingConfig

    def groups(self, depth: int) -> list[list[int]]:
        """Blocks that share, group by group; at least two each.

        Raises:
            OptionError: if a block does not exist.
        """
        wanted = range(depth) if self.config.blocks is None else self.config.blocks
        blocks = sorted(checked(self.name, "blocks", wanted, depth, "Write `null` for all blocks."))
        size, found = self.config.group, []
        for _, run in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
            row = [block for _, block in run]
            found += [row[i : i + size] for i in range(0, len(row), size)]
        return [group for group in found if len(group) > 1]

    def claims(self, facts: Facts) -> Claims:
        """Own the form of the weights of blocks that share, and where they are transformed, the mixing and the MLP."""
        if facts.student.family != "vit":
            return Claims(owns=matrix_claims(PARTS, (0,)))  # which such a network does not have
        groups = self.groups(facts.student.depth)
        for group in groups:
            self._check_alike(group, facts)
        blocks = [b for group in groups for b in group]
        owns, alike = matrix_claims(PARTS, blocks), at_blocks(ALIKE, blocks)
        if not self.config.transform:
            return Claims(owns=owns, needs=alike)
        return Claims(
            owns=owns | at_blocks(MIXING, blocks) | at_blocks(MLP, blocks),
            needs=alike | at_blocks(GRID, blocks) | at_blocks(DENSE, blocks),
            hides=at_blocks(TOKENS, blocks),  # the convolution comes behind the token seam of its block
        )

    def _check_alike(self, group: list[int], facts: Facts) -> None:
        """A matrix has one size."""
        ranks: dict[int, dict[str, int]] = {b: {} for b in group}
        for name, rank in facts.shapes.ranks.items():
            _, block, layer = name.split(".", 2)
            if int(block) in ranks:
                ranks[int(block)][layer] = rank
        if len({facts.shapes.blocks.get(b) for b in group}) == 1 and all(ranks[b] == ranks[group[0]] for b in group):
            return
        raise OptionError(
            self.name,
            "group",
            f"pruning or factors left the layers of blocks {', '.join(map(str, group))} different sizes",
            "blocks that are alike",
            "Way out: `scope: per_block` where the network was pruned, one `rank` where it was factorised, or other "
            "`blocks` here.",
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the first block's layers into the others of its group, and the transformations at their seams.

        Raises:
            ValueError: if layers differ in size after all.
        """
        from torch import nn

        from strategies.component.shared_transform import HeadMixing, LocalMlp

        model = student.model
        groups = self.groups(facts.student.depth)
        for first, *others in groups:
            for b in others:
                for name in names_of(model.blocks[first], PARTS):
                    _share(model.blocks[b], name, model.blocks[first].get_submodule(name), self.name, b)
        if not groups or not self.config.transform:
            return
        like, modules = next(model.parameters()), {}
        for b in (b for group in groups for b in group):
            mixing, local = HeadMixing(model.blocks[b].attn.num_heads), LocalMlp(model.embed_dim)
            modules[str(b)] = nn.ModuleDict({"mixing": mixing, "local": local}).to(like.device, like.dtype)
            student.mixing[b], student.second_half[b] = mixing, local
        student.extras[self.name] = nn.ModuleDict(modules)


def _share(block: Any, name: str, layer: Any, strategy: str, b: int) -> None:
    own = block.get_submodule(name)
    if (own.in_features, own.out_features) != (layer.in_features, layer.out_features):
        raise ValueError(f"{strategy}.group: `{name}` of block {b} has another size than the block it would share with")
    block.set_submodule(name, layer)
