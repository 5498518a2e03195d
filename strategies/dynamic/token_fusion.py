"""Token fusion: similar tokens are pruned in early blocks and merged at full length in late ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.dynamic.merging import Merge, Merging, MergingConfig

if TYPE_CHECKING:
    from strategies.dynamic.bipartite_matching import Matching
    from strategies.state import State


class TokenFusionConfig(MergingConfig):
    """Options of `token_fusion`."""

    name: Literal["token_fusion"] = "token_fusion"
    """Always `token_fusion`."""

    prune_until: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the network's depth, from its start, whose blocks prune; those behind merge. 0 = all merge, 1 = all
    prune."""


class TokenFusion(Merging[TokenFusionConfig]):
    """Prune the r most similar tokens of every early block, merge them in late blocks (ToFu).

    Tokens are matched as in `token_merging`. Early blocks answer less linearly to a mean of two tokens, so there each
    matched token is dropped and the one that it was matched with stands for both. Later a group becomes
    m / ‖m‖ · max_i ‖x_i‖ with m its mean (MLERP): a plain mean is shorter than what it was made of. Nothing to train.
    """

    paper = "Kim et al. 2023, arXiv:2312.01026"
    examples = ({"r": 8}, {"r": 6, "prune_until": 0.0, "prop_attn": False}, {"r": [8, 0, 12, 4], "prune_until": 1.0})
    Config = TokenFusionConfig

    def seam(self, block: int, r: int, depth: int) -> Merge:
        """Pruning in the first `prune_until` of the blocks, merging behind them."""
        reduction = Prune if block < self.config.prune_until * depth else MergeAtFullLength
        return reduction(r, self.config.prop_attn)


class Prune(Merge):
    """Matched tokens are dropped; those they were matched with keep value and place, and stand for both."""

    def reduce(self, state: State, matching: Matching) -> State:
        """Tokens, sizes and positions after pruning."""
        from strategies.dynamic.bipartite_matching import total_size

        return replace(state.gather(matching.kept), size=total_size(state.size, matching))


class MergeAtFullLength(Merge):
    """A group becomes its mean, as long as the longest of its tokens."""

    def reduce(self, state: State, matching: Matching) -> State:
        """Tokens, sizes and positions after merging."""
        from strategies.dynamic.bipartite_matching import lengthen

        merged = super().reduce(state, matching)
        return merged.with_x(lengthen(merged.x, state.x, matching))
