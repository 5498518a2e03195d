"""Which heads and channels stay, given how much each matters. Nothing is cut here.

Choices are nested: what stays at a higher ratio stays at every lower one, so that cost falls steadily with the ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.cost import network_macs
from strategies.facts import ModelFacts

Scope = Literal["per_block", "isomorphic", "global"]
Kept = list[tuple[Tensor, Tensor]]
"""Per block: indices of the heads and of the MLP channels that stay, ascending (int64)."""

RATIO_STEPS = 40
"""Halvings of the interval of ratios; the 40th is finer than one channel of any network."""


@dataclass(frozen=True)
class Candidates:
    """Everything that may be removed."""

    heads: list[Tensor]
    """Per block: importance of its heads [H]."""
    channels: list[Tensor]
    """Per block: importance of its MLP channels [M]."""
    head_size: int
    """Weights of one head."""
    channel_size: int
    """Weights of one channel."""
    what: frozenset[str]
    """`heads`, `mlp`, or both."""
    round_to: int
    """MLP widths are multiples of this."""


def nearest(number: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(number + 0.5)


def rounded_width(width: int, multiple: int, limit: int) -> int:
    """The nearest multiple, halves up; at least one multiple, at most `limit` (which need not be a multiple)."""
    return limit if width >= limit else min(limit, max(multiple, nearest(width / multiple) * multiple))


def choose(candidates: Candidates, scope: Scope, ratio: float) -> Kept:
    """Remove a share of heads and channels.

    Args:
        candidates: importances of what is there.
        scope: `per_block` and `isomorphic`: `ratio` is a share of the heads, and of the channels. `global`: a share of
            the weights of both together.
        ratio: in [0, 1).
    """
    c = candidates
    head_ratio, mlp_ratio = (ratio if "heads" in c.what else 0.0), (ratio if "mlp" in c.what else 0.0)
    if scope == "per_block":
        num_heads = [max(1, nearest(len(h) * (1 - head_ratio))) for h in c.heads]
        widths = [nearest(len(m) * (1 - mlp_ratio)) for m in c.channels]
    elif scope == "isomorphic":
        num_heads = _survivors(c.heads, 1, head_ratio)
        widths = _survivors(c.channels, c.round_to, mlp_ratio)
    else:
        num_heads, widths = _global_survivors(c, ratio)
    return [
        (_best(heads, h), _best(channels, rounded_width(m, c.round_to, len(channels))))
        for heads, channels, h, m in zip(c.heads, c.channels, num_heads, widths, strict=True)
    ]


def choose_for_macs(candidates: Candidates, scope: Scope, target_macs: float, facts: ModelFacts) -> Kept:
    """Remove as little as brings the network to `target_macs` or just below.

    The cost of a choice is the closed form, and it falls with the ratio: halving finds the ratio.

    Args:
        candidates: importances of what is there.
        scope: as in `choose`.
        target_macs: MACs an image, in the reachable range.
        facts: the network's structure.
    """

    def fits(ratio: float) -> bool:
        kept = choose(candidates, scope, ratio)
        return network_macs(facts, {b: (len(h), len(m)) for b, (h, m) in enumerate(kept)}) <= target_macs

    if fits(0.0):
        return choose(candidates, scope, 0.0)
    low, high = 0.0, 1.0
    for _ in range(RATIO_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return choose(candidates, scope, high)


def _best(importance: Tensor, number: int) -> Tensor:
    """Indices of the `number` most important, ascending; of equals the first stays."""
    return torch.argsort(importance, descending=True, stable=True)[:number].sort().values


def _removable(importance: list[Tensor], least: int) -> tuple[Tensor, Tensor]:
    """Importance of everything that may leave, and its block; each block's `least` best are left out."""
    rest = [torch.sort(i, descending=True, stable=True).values[least:] for i in importance]
    blocks = [torch.full((len(r),), b) for b, r in enumerate(rest)]
    return torch.cat(rest).cpu(), torch.cat(blocks)


def _survivors(importance: list[Tensor], least: int, ratio: float) -> list[int]:
    """How many stay in each block when all blocks compete and `ratio` of all leave."""
    scores, blocks = _removable(importance, least)
    wanted = nearest(ratio * sum(len(i) for i in importance))
    leaves = blocks[torch.argsort(scores, stable=True)[:wanted]]
    gone = torch.bincount(leaves, minlength=len(importance)).tolist()
    return [len(i) - g for i, g in zip(importance, gone, strict=True)]


def _global_survivors(c: Candidates, ratio: float) -> tuple[list[int], list[int]]:
    """How many heads and channels stay in each block when all compete and `ratio` of all their weights leave."""
    depth = len(c.heads)
    parts: list[tuple[Tensor, Tensor, int]] = []
    total = 0
    if "heads" in c.what:
        parts.append((*_removable(c.heads, 1), c.head_size))
        total += c.head_size * sum(len(h) for h in c.heads)
    if "mlp" in c.what:
        scores, blocks = _removable(c.channels, c.round_to)
        parts.append((scores, blocks + depth, c.channel_size))
        total += c.channel_size * sum(len(m) for m in c.channels)
    scores = torch.cat([s for s, _, _ in parts])
    owner = torch.cat([b for _, b, _ in parts])
    sizes = torch.cat([torch.full((len(s),), size) for s, _, size in parts])
    order = torch.argsort(scores, stable=True)
    # Whoever brings the sum of removed weights nearer to the share still leaves.
    removed = sizes[order].cumsum(0) - sizes[order] / 2
    leaves = owner[order][removed < ratio * total]
    gone = torch.bincount(leaves, minlength=2 * depth).tolist()
    return (
        [len(h) - g for h, g in zip(c.heads, gone[:depth], strict=True)],
        [len(m) - g for m, g in zip(c.channels, gone[depth:], strict=True)],
    )
