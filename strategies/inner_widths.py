"""Channels inside the blocks of networks outside of the loop, which nothing but the block itself sees.

They can be cut without touching the rest of the network: what enters and leaves the block stays as wide as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from timm.layers import Mlp
from timm.layers.mlp import ConvMlp
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from strategies.surgery import Axes, Axis

Chain = tuple[str, tuple[str, ...], str]
"""The layer that makes the channels, what acts on each of them alone, and the layer that reads them."""


def inner_axes(model: nn.Module) -> Axes:
    """What the dimensions of a network's tensors count, as far as blocks hold channels of their own.

    Known are the MLPs of timm's hierarchical networks and of its Vision Transformers outside of the loop (`Mlp`,
    `ConvMlp`, both without an inner norm, and PVTv2's with a depth-wise convolution), and ResNet's `BasicBlock` and
    `Bottleneck`. An axis is named after its kind (the block's class and the first layer) and the first layer's place.
    """
    axes: dict[str, dict[int, Axis]] = {}
    for name, block in model.named_modules():
        for first, between, last in _chains(block):
            axis = Axis(f"{type(block).__name__}.{first}", f"{name}.{first}" if name else first)
            for part in (first, *between):
                module = block.get_submodule(part)
                for tensor, value in chain(module.named_parameters(), module.named_buffers()):
                    if value.dim():  # a batch norm also counts its batches
                        axes.setdefault(f"{name}.{part}.{tensor}", {})[0] = axis
            axes.setdefault(f"{name}.{last}.weight", {})[1] = axis
    return axes


def _chains(block: nn.Module) -> Iterator[Chain]:
    """The inner widths of one block. Exact types alone: subclasses may read the channels elsewhere."""
    kind = type(block)
    if kind in (Mlp, ConvMlp) and type(block.norm) is nn.Identity:
        yield "fc1", (), "fc2"
    elif kind is MlpWithDepthwiseConv:
        yield "fc1", ("dwconv",), "fc2"
    elif kind is BasicBlock and _single(block, "bn1"):
        yield "conv1", ("bn1",), "conv2"
    elif kind is Bottleneck and _single(block, "bn1", "bn2") and block.conv2.groups == 1:  # type: ignore[union-attr]  # a convolution
        yield "conv1", ("bn1",), "conv2"
        yield "conv2", ("bn2",), "conv3"


def _single(block: nn.Module, *norms: str) -> bool:
    """Whether between the convolutions every channel is treated alone."""
    return type(block.aa) is nn.Identity and all(type(block.get_submodule(n)) is nn.BatchNorm2d for n in norms)
