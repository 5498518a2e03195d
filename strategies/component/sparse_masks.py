"""The masks of a sparse network, as buffers, so that checkpoints, averages and workers agree on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from strategies.component.sparse_topology import (
    best,
    erk_densities,
    exchange,
    exchange_in_fours,
    exchanged_share,
    two_of_four,
)

if TYPE_CHECKING:
    from strategies.component.sparse_weights import SparseWeightsConfig


class SparseMasks(nn.Module):
    """Which weights are kept.

    Args:
        model: the timm network; nothing of it is kept.
        names: of its sparse layers.
        density, distribution, pattern: as in the options.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, names: list[str], density: float, distribution: str, pattern: str) -> None:
        super().__init__()
        self.names = tuple(names)
        weights = [weight_of(model, name) for name in names]
        sizes = [(w.shape[0], w.shape[1]) for w in weights]
        shares = erk_densities(sizes, density) if distribution == "erk" else [density] * len(sizes)
        for name, weight, share in zip(names, weights, shares, strict=True):
            size = weight.detach().abs()
            mask = two_of_four(size) if pattern == "2:4" else best(size, max(1, round(share * size.numel())))
            self.register_buffer(key(name), mask)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=weights[0].device))

    def mask(self, name: str) -> Tensor:
        """What is kept of a layer's weight [n, m] (bool)."""
        return self.get_buffer(key(name))

    def density(self) -> float:
        """Share of the weights that is kept."""
        masks = [self.mask(name) for name in self.names]
        return float(sum(int(m.sum()) for m in masks)) / sum(m.numel() for m in masks)

    @torch.no_grad()
    def zero(self, model: nn.Module) -> None:
        """Set to 0 what is not kept."""
        for name in self.names:
            weight_of(model, name).mul_(self.mask(name))

    @torch.no_grad()
    def after_backward(self, model: nn.Module, progress: float, config: SparseWeightsConfig) -> None:
        """Count a step; exchange if it is time; drop the gradients of what is not kept."""
        self.steps += 1
        share = exchanged_share(progress, config.exchange, config.until)
        due = share > 0 and int(self.steps) % config.update_every == 0
        for name in self.names:
            weight, mask = weight_of(model, name), self.mask(name)
            if weight.grad is None:
                continue
            if due:
                growth = weight.grad.abs().float().nan_to_num(0.0, 0.0, 0.0)  # float16 overflows where it is scaled up
                number = round(share * int(mask.sum()))
                swap = exchange_in_fours if config.pattern == "2:4" else exchange
                mask.copy_(swap(mask, weight, growth, number))
            weight.grad.mul_(mask)


def key(name: str) -> str:
    """A buffer's name for a layer's."""
    return name.replace(".", "_")


def weight_of(model: nn.Module, name: str) -> Any:
    """The weight of a layer."""
    return model.get_submodule(name).weight
