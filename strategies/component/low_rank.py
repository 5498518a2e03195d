"""Low-rank factors: linear layers become products of two smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import Claims, OptionError, Strategy
from strategies.blocks import checked
from strategies.component.block_matrices import PARTS, Part, matrix_claims, names_of, sizes_of
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class LowRankConfig(StrategyConfig):
    """Options of `low_rank`."""

    name: Literal["low_rank"] = "low_rank"
    """Always `low_rank`."""

    rank: PositiveInt | None = None
    """Rank of the factors, alike in all layers; below m·n/(m + n) of every kind of layer in `what` (m inputs, n
    outputs), from where on factors cost more than the matrix. Write either `rank` or `energy`."""

    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each matrix's squared singular values that its factors keep; each gets the smallest rank that does.
    Layers whose factors would cost more than the matrix stay as they are; 1 = all do. It says little on random weights,
    whose singular values are much alike: start from a trained network."""

    what: tuple[Part, ...] = Field(default=PARTS, min_length=1)
    """Which layers. `qkv`: the one that makes queries, keys and values. `proj`: the one after attention. `mlp`: those
    of the MLP."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks whose layers become factors, counted from 0 among those that pruning leaves; `null` = all."""

    @model_validator(mode="after")
    def _one_way(self) -> LowRankConfig:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("write either `rank` (of all factors) or `energy` (share that is kept, above 0 to 1)")
        if len(set(self.what)) != len(self.what):
            raise ValueError("`what` names the same layer twice; write for example [qkv, proj, mlp]")
        return self


def break_even(num_inputs: int, num_outputs: int) -> int:
    """The largest rank r at which factors take fewer products than the matrix, r·(m + n) < m·n; 0 if none does."""
    return (num_inputs * num_outputs - 1) // (num_inputs + num_outputs)


class LowRank(Strategy[LowRankConfig]):
    """Replace linear layers by the product of two: y = U·(V·x) + b, V [r, m], U [n, r].

    At the start of the stage U·V is the best approximation of rank r, by the singular value decomposition
    W = P·S·Qᵀ: V = √S_r·Q_rᵀ, U = P_r·√S_r (Denton et al. 2014, arXiv:1404.0736, for trained networks). Then both are
    trained. r·(m + n) weights and products a token take the place of m·n.

    For a plain block with all layers at rank r that is N·r·(4·D + 2·D + 5·D + 5·D) = 16·N·r·D MACs in the place of
    12·N·D² (N tokens, width D, an MLP four times as wide), besides 2·N²·D within attention.

    It happens once, after pruning in the same stage: the ranks travel with the network like pruned shapes, and later
    stages go on with the factors without listing this strategy. Listed again, it makes the factors of rank `rank`, or
    keeps `energy` of what is left. A network of factors cannot be pruned any more.
    """

    kind = "component"
    paper = "Denton et al. 2014, arXiv:1404.0736"
    neutral: ClassVar = {"energy": 1.0}
    examples = ({"rank": 12}, {"energy": 0.6, "what": ["mlp"]}, {"rank": 8, "what": ["qkv", "proj"], "blocks": [1, 3]})
    once = True
    late = True
    Config = LowRankConfig

    def factored(self, depth: int) -> tuple[int, ...]:
        """Blocks whose layers become factors.

        Raises:
            OptionError: if a block does not exist.
        """
        if self.config.energy == 1:
            return ()
        wanted = range(depth) if self.config.blocks is None else self.config.blocks
        return checked(self.name, "blocks", wanted, depth, "Write `null` for all blocks.")

    def claims(self, facts: Facts) -> Claims:
        """Own the form of these layers' weights."""
        if facts.student.family != "vit":
            return Claims(owns=matrix_claims(self.config.what, (0,)))  # which such a network does not have
        blocks = self.factored(facts.student.depth)
        if self.config.rank is not None and blocks:
            if facts.shapes:
                self._check_left(self.config.rank, facts, blocks)
            else:
                self._check_rank(self.config.rank, facts, blocks[0])
        return Claims(owns=matrix_claims(self.config.what, blocks))

    def _check_rank(self, rank: int, facts: Facts, block: int) -> None:
        """Of a whole network, whose blocks are alike. Layers that pruning made smaller than that stay as they are."""
        what = self.config.what if facts.student.can_prune else [part for part in self.config.what if part != "mlp"]
        limits = {name: break_even(m, n) for name, m, n in sizes_of(facts, block, what)}
        too_small = [name for name, limit in limits.items() if rank > limit]
        if not too_small:
            return
        rest = [name for name in limits if name not in too_small]
        way_out = "Write a smaller rank"
        if rest:
            way_out += f", or leave {' and '.join(sorted({_part(n) for n in too_small}))} out of `what`"
        raise OptionError(
            self.name,
            "rank",
            f"factors of rank {rank} cost as much as the matrix, or more, of {', '.join(too_small)} in "
            f"`{facts.student.model}`",
            f"1 to {min(limits.values())}",
            f"{way_out}.",
        )

    def _check_left(self, rank: int, facts: Facts, blocks: Sequence[int]) -> None:
        """Of a network that was cut before, where at least one layer must be large enough."""
        what = self.config.what
        if "mlp" in what and not facts.student.can_prune:
            return  # the layers of such an MLP are known only once it is built
        limits = [
            min(break_even(m, n), facts.shapes.ranks.get(f"blocks.{b}.{name}", max(m, n)))
            for b in blocks
            for name, m, n in sizes_of(facts, b, what)
        ]
        if rank > max(limits):
            raise OptionError(
                self.name,
                "rank",
                f"pruning or factors leave no layer of `{facts.student.model}` that is large enough for factors of "
                f"rank {rank} to save anything",
                f"1 to {max(limits)}",
                "Write a smaller rank, or prune less.",
            )

    def leaves(self, facts: Facts) -> Facts:
        """With the ranks that `rank` sets; those that `energy` finds are known only to be below break-even."""
        network = facts.student
        if network.family != "vit" or not network.can_prune or self.config.energy == 1:
            return facts
        wanted = range(network.depth) if self.config.blocks is None else self.config.blocks
        ranks = dict(facts.shapes.ranks)
        for b in (b for b in wanted if b < network.depth):
            for name, m, n in sizes_of(facts, b, self.config.what):
                limit = break_even(m, n)
                rank = limit if self.config.rank is None else self.config.rank
                if 0 < rank <= limit:
                    ranks[f"blocks.{b}.{name}"] = rank
        return facts.further(replace(facts.shapes, ranks=ranks))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Decompose the layers as they are now.

        Raises:
            ValueError: if no layer is large enough, because pruning chose to make all of them smaller than planned.
        """
        from strategies.factors import dense_weight, factorise, rank_for

        c, ranks = self.config, dict(student.shapes.ranks)
        blocks, done = self.factored(facts.student.depth), 0
        for b in blocks:
            block = student.model.blocks[b]
            for name in names_of(block, c.what):
                layer, full_name = block.get_submodule(name), f"blocks.{b}.{name}"
                limit = break_even(layer.in_features, layer.out_features)
                if c.rank is not None:
                    rank = c.rank
                else:
                    assert c.energy is not None, "the options hold one of both"
                    rank = rank_for(dense_weight(layer), c.energy)
                if rank <= min(limit, ranks.get(full_name, limit)):
                    factorise(student.model, full_name, rank)
                    ranks[full_name] = rank
                    done += 1
        if c.rank is not None and not done:
            raise ValueError(
                f"{self.name}.rank: no layer of `{facts.student.model}` is large enough any more for factors of rank "
                f"{c.rank} to save anything. Way out: a smaller rank."
            )
        student.shapes = replace(student.shapes, ranks=ranks)


def _part(layer: str) -> str:
    """What a layer is called in `what`."""
    return "mlp" if layer.startswith("mlp") else layer.removeprefix("attn.")
