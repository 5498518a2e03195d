"""Which weights of a sparse network are kept: how many in each layer, which at first, and which are exchanged.

Sources: Chen et al. 2021, "Chasing Sparsity in Vision Transformers", arXiv:2106.04533, section 3.1; Evci et al. 2020,
"Rigging the Lottery", arXiv:1911.11134, for the densities (ERK) and the cosine.

Shapes: n outputs, m inputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def erk_densities(sizes: Sequence[tuple[int, int]], density: float) -> list[float]:
    """Erdős–Rényi densities: layer l keeps a share ε·(n_l + m_l)/(n_l·m_l), at most all of it, with the ε at which all
    layers together keep `density` of their weights. Loads no torch.

    Args:
        sizes: (n, m) of each layer.
        density: in (0, 1].
    """
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        if not rest:
            return [1.0] * len(sizes)
        budget = density * sum(n * m for n, m in sizes) - sum(sizes[i][0] * sizes[i][1] for i in dense)
        epsilon = budget / sum(sum(sizes[i]) for i in rest)
        raw = {i: epsilon * sum(sizes[i]) / (sizes[i][0] * sizes[i][1]) for i in rest}
        full = {i for i, share in raw.items() if share > 1}
        if not full:
            return [1.0 if i in dense else raw[i] for i in range(len(sizes))]
        dense |= full


def exchanged_share(progress: float, at_first: float, until: float) -> float:
    """Share of the kept weights that an update exchanges: ½·α·(1 + cos(π·t/T)), 0 from T on.

    Args:
        progress: t, of the stage, in [0, 1].
        at_first: α.
        until: T.
    """
    return 0.0 if progress >= until else at_first / 2 * (1 + math.cos(math.pi * progress / until))


def best(scores: Tensor, number: int) -> Tensor:
    """Mask of the highest scores, earlier positions first among equals.

    Args:
        scores: any shape.
        number: how many.
    """
    import torch

    chosen = torch.sort(scores.flatten(), descending=True, stable=True).indices[:number]
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    return mask.index_fill(0, chosen, True).view(scores.shape)


def exchange(mask: Tensor, weight: Tensor, growth: Tensor, number: int) -> Tensor:
    """Drop the smallest kept weights, and keep as many others in their place. What was just dropped may come back.

    Args:
        mask: what is kept [n, m] (bool).
        weight: [n, m].
        growth: who is to be kept next, the higher the sooner: the gradients' magnitude [n, m].
        number: how many.

    Returns:
        The new mask, with as many kept.
    """
    kept = int(mask.sum())
    number = min(number, kept)
    staying = best(weight.abs().masked_fill(~mask, -1.0), kept - number)
    return staying | best(growth.masked_fill(staying, -1.0), number)


def two_of_four(scores: Tensor) -> Tensor:
    """Mask of the two highest of every four inputs in a row [n, m], m a multiple of 4."""
    import torch

    fours = scores.unflatten(1, (-1, 4))
    order = fours.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool)
    return mask.scatter(-1, order[..., :2], True).flatten(1)


def exchange_in_fours(mask: Tensor, weight: Tensor, growth: Tensor, number: int) -> Tensor:
    """As `exchange`, and of every four inputs in a row two stay kept: where the weaker of the two is among the smallest
    of all fours, it gives way to the one of the other two that grows more, or stays if itself grows more.

    Args:
        number: in how many fours, at most all of them.
    """
    import torch

    kept, size, grows = (t.unflatten(1, (-1, 4)) for t in (mask, weight.abs(), growth))
    weakest = size.masked_fill(~kept, torch.inf)
    value, position = weakest.min(dim=-1, keepdim=True)
    chosen = best(-value, min(number, value.numel()))
    staying = kept & ~torch.zeros_like(kept).scatter(-1, position, chosen)
    newcomer = grows.masked_fill(staying, -1.0).argmax(dim=-1, keepdim=True)
    return (staying | torch.zeros_like(kept).scatter(-1, newcomer, chosen)).flatten(1)
