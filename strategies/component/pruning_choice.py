"""Which heads and channels stay, given how much each matters. Nothing is cut here.

Choices are nested: what stays at a higher ratio stays at every lower one, so that cost falls steadily with the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.component.pruning_goal import nearest, rounded_width, smallest_ratio

Scope = Literal["per_block", "isomorphic", "global"]


@dataclass(frozen=True)
class Candidates:
    """The heads, or the MLP channels, of one block; or another width, of which some may be removed."""

    role: str
    """`heads`, `mlp`, …: what has the same role is alike everywhere in the network."""
    importance: Tensor
    """Of each [n]."""
    size: int
    """Weights of one."""
    multiple: int = 1
    """How many stay is a multiple of this, at least one multiple."""
    start: int | None = None
    """How many there were when pruning began; ratios are shares of that. `None` = n."""

    @property
    def number(self) -> int:
        """n, how many are still there."""
        return len(self.importance)

    @property
    def started(self) -> int:
        """How many there were."""
        return self.number if self.start is None else self.start


def choose(candidates: Sequence[Candidates], scope: Scope, ratio: float) -> list[Tensor]:
    """Remove a share.

    Args:
        candidates: all that there is.
        scope: `per_block`: each loses `ratio` of its number. `isomorphic`: those of the same role together do, the
            least important first. `global`: all together lose this share of their weights.
        ratio: in [0, 1], of what there was at the start.

    Returns:
        What stays of each: positions, ascending (int64).
    """
    if not candidates:
        return []
    if scope == "per_block":
        left = [nearest(c.started * (1 - ratio)) for c in candidates]
    elif scope == "isomorphic":
        left = [0] * len(candidates)
        for role in dict.fromkeys(c.role for c in candidates):
            places = [i for i, c in enumerate(candidates) if c.role == role]
            for place, number in zip(places, _survivors([candidates[i] for i in places], ratio), strict=True):
                left[place] = number
    else:
        left = _global_survivors(candidates, ratio)
    return [
        best(c.importance, rounded_width(number, c.multiple, c.number))
        for c, number in zip(candidates, left, strict=True)
    ]


def choose_until(
    candidates: Sequence[Candidates], scope: Scope, enough: Callable[[list[Tensor]], bool]
) -> list[Tensor]:
    """Remove as little as is enough.

    Args:
        candidates, scope: as in `choose`.
        enough: whether so much may stay; if it may, less may too.
    """
    return choose(candidates, scope, smallest_ratio(lambda ratio: enough(choose(candidates, scope, ratio))))


def best(importance: Tensor, number: int) -> Tensor:
    """Positions of the `number` most important, ascending; of equals the first stays."""
    return torch.argsort(importance, descending=True, stable=True)[:number].sort().values


def _removable(candidates: Sequence[Candidates]) -> tuple[Tensor, Tensor]:
    """Importance of everything that may leave, and whose it is; the best multiple of each is left out."""
    rest = [torch.sort(c.importance, descending=True, stable=True).values[c.multiple :].cpu() for c in candidates]
    return torch.cat(rest), torch.cat([torch.full((len(r),), i) for i, r in enumerate(rest)])


def _survivors(candidates: Sequence[Candidates], ratio: float) -> list[int]:
    """How many stay of each when all compete and `ratio` of their number leave."""
    scores, owner = _removable(candidates)
    begun = sum(c.started for c in candidates)
    wanted = max(0, nearest(ratio * begun) - (begun - sum(c.number for c in candidates)))
    gone = torch.bincount(owner[torch.argsort(scores, stable=True)[:wanted]], minlength=len(candidates)).tolist()
    return [c.number - g for c, g in zip(candidates, gone, strict=True)]


def _global_survivors(candidates: Sequence[Candidates], ratio: float) -> list[int]:
    """How many stay of each when all compete and `ratio` of all their weights leave."""
    scores, owner = _removable(candidates)
    begun = sum(c.size * c.started for c in candidates)
    already = begun - sum(c.size * c.number for c in candidates)
    order = torch.argsort(scores, stable=True)
    sizes = torch.tensor([c.size for c in candidates])[owner[order]]
    # Whoever brings the sum of removed weights nearer to the share still leaves.
    removed = already + sizes.cumsum(0) - sizes / 2
    gone = torch.bincount(owner[order][removed < ratio * begun], minlength=len(candidates)).tolist()
    return [c.number - g for c, g in zip(candidates, gone, strict=True)]
