"""A network to prune: 64 patches, width 48, 4 blocks with 3 heads and 192 MLP channels."""

from __future__ import annotations

import torch
from torch import nn

from specs.model import ModelSpec
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import build_model, compose
from strategies.facts import Facts

D, E, H, M, DEPTH = 48, 16, 3, 192, 4


def prune(model: nn.Module, facts: Facts, **options):
    return compose(model, [StructuredPruning(StructuredPruningConfig(**options))], facts)


def uneven(spec: ModelSpec) -> nn.Module:
    """Every parameter is random, and blocks differ in scale, so that rankings across blocks mean something."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    with torch.no_grad():
        for i, block in enumerate(network.blocks):
            for parameter in block.parameters():
                parameter.add_(0.1 * (1 + 0.02 * i) * torch.randn_like(parameter))
    return network
