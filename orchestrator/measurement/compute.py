"""What a network costs before any clock runs: parameters, multiply-accumulates, bytes on disk.

Counted are convolutions and matrix products, those inside attention included. Not counted: norms, activations, softmax,
biases, additions, gathers and sorts. One MAC is one multiplication with its addition; FLOPs = 2 × MACs.

Fused attention kernels hide their products from a counter, so attention is taken apart into plain products first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RULE = "convolutions and matrix products, attention unfused"
"""The rule of counting, as it stands in the conditions of every counted row."""

MIB = 2**20


def num_parameters(network: nn.Module) -> int:
    """Parameters; shared ones count once."""
    return sum(p.numel() for p in network.parameters())


def weight_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers in the precision they are held in."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def checkpoint_bytes(weights: dict[str, Tensor]) -> int:
    """Size of the safetensors file that holds these weights."""
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))


def static_macs(network: nn.Module, input_shape: tuple[int, int, int]) -> float | None:
    """MACs of one image, or `None` if they depend on what the image shows.

    The network runs on tensors that have shapes but no values. Whatever needs a value to go on (an exit taken on
    confidence, a number of kept tokens that varies) cannot, and that is the criterion: a network whose pass is fixed by
    the shape of its input has one cost, every other network has a distribution of costs.

    Args:
        input_shape: [channels, side, side].
    """
    device = next(network.parameters()).device
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(network, torch.empty(1, *input_shape, device=device))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None


def macs_of_images(network: nn.Module, images: Tensor) -> list[float]:
    """MACs of each image, each run alone through the network.

    Counting is slow, running is not: images whose passes go through the same modules with the same shapes share one
    count.

    Args:
        images: [B, channels, side, side], on the network's device.
    """
    counts: dict[tuple[Any, ...], float] = {}
    macs = []
    for image in images.split(1):
        with _path_of(network) as path, torch.no_grad():
            network(image)
        taken = tuple(path)
        if taken not in counts:
            counts[taken] = _counted(network, image)
        macs.append(counts[taken])
    return macs


def _counted(network: nn.Module, images: Tensor) -> float:
    """MACs of one pass over these images."""
    with torch.no_grad(), unfused(network), FlopCounterMode(display=False) as counter:
        network(images)
    flops: int = counter.get_total_flops()
    return flops / 2


@contextmanager
def unfused(network: nn.Module) -> Iterator[None]:
    """Take attention apart into matrix products: timm's modules by their own switch, all else by torch's."""
    switched = [m for m in network.modules() if getattr(m, "fused_attn", False)]
    try:
        for module in switched:
            module.fused_attn = False  # type: ignore[assignment]  # a plain attribute of timm's attention modules
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in switched:
            module.fused_attn = True  # type: ignore[assignment]


@contextmanager
def _path_of(network: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Write down which modules a pass goes through, with the shapes they receive."""
    path: list[tuple[Any, ...]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            path.append((name, *(tuple(x.shape) for x in inputs if isinstance(x, Tensor))))

        return hook

    handles = [m.register_forward_pre_hook(note(name)) for name, m in network.named_modules() if not list(m.children())]
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()
