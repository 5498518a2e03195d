"""What a network costs before any clock runs: multiply-accumulates, activations, parameters met, bytes.

Counted are convolutions and matrix products, those inside attention included. Not counted: norms, activation functions,
softmax, biases, additions, pooling, interpolation, Fourier transforms, gathers and sorts. One MAC is one multiplication
with its addition; FLOPs = 2 × MACs.

Fused kernels (attention, recurrent layers) hide their products from a counter, so they are taken apart into plain
products first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

RULE = "convolutions and matrix products, attention unfused"
"""The rule of counting, as it stands in the conditions of every counted row."""

MIB = 2**20

PASS_FAILED = (RuntimeError, ValueError, TypeError, AssertionError)
"""What the code of a network raises when a pass cannot be run."""


@dataclass(frozen=True)
class Count:
    """What one image costs on its way through a network."""

    macs: float
    activations: float
    """Elements that convolutions and matrix products put out."""
    active_params: float
    """Elements of the parameters that any operation read."""
    traffic: float
    """Elements that convolutions and matrix products read, both factors once each, and write."""

    @classmethod
    def mean(cls, counts: Sequence[Count]) -> Count:
        """The expected cost over images."""
        return cls(*(math.fsum(values) / len(counts) for values in zip(*map(_values, counts), strict=True)))

    def intensity(self, bytes_per_element: int) -> float | None:
        """Arithmetic intensity in FLOPs/byte; `None` where nothing is multiplied."""
        return 2 * self.macs / (bytes_per_element * self.traffic) if self.traffic else None


def num_parameters(network: nn.Module) -> int:
    """Parameters; shared ones count once."""
    return sum(p.numel() for p in network.parameters())


def weight_bytes(network: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of all parameters and buffers, in the format they are held in, or with the floating ones in `dtype`."""
    tensors = {id(t): t for t in itertools.chain(network.parameters(), network.buffers())}.values()
    return sum(t.numel() * (dtype or t.dtype if t.is_floating_point() else t.dtype).itemsize for t in tensors)


def checkpoint_bytes(weights: dict[str, Tensor]) -> int:
    """Size of the safetensors file that holds these weights."""
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))


def static_count(network: nn.Module, input_shape: tuple[int, int, int]) -> Count | None:
    """What one image costs, or `None` if that depends on what the image shows.

    The network runs on tensors that have shapes but no values. Whatever needs a value to go on (an exit taken on
    confidence, a number of kept tokens that varies) cannot, and that is the criterion: a network whose pass is fixed by
    the shape of its input has one cost, every other network has a distribution of costs. A network that cannot run
    without values for another reason is counted on images, too, which takes longer and gives the same, or the reason.

    Args:
        input_shape: [channels, side, side].
    """
    tensor = next(itertools.chain(network.parameters(), network.buffers()), None)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(network, torch.empty(1, *input_shape, device=None if tensor is None else tensor.device))
    except PASS_FAILED:
        return None


def static_macs(network: nn.Module, input_shape: tuple[int, int, int]) -> float | None:
    """MACs of one image, or `None` if they depend on what the image shows; see `static_count`."""
    count = static_count(network, input_shape)
    return None if count is None else count.macs


def counts_of_images(network: nn.Module, images: Tensor) -> list[Count]:
    """What each image costs, each run alone through the network.

    Counting is slow, running is not: images whose passes go through the same modules with the same shapes share one
    count.

    Args:
        images: [B, channels, side, side], on the network's device.
    """
    by_path: dict[tuple[Any, ...], Count] = {}
    counts = []
    for image in images.split(1):
        with _path_of(network) as path, torch.no_grad():
            network(image)
        taken = tuple(path)
        if taken not in by_path:
            by_path[taken] = _counted(network, image)
        counts.append(by_path[taken])
    return counts


def _counted(network: nn.Module, image: Tensor) -> Count:
    """One pass of one image [1, channels, side, side]."""
    with torch.no_grad(), unfused(network), _Counter(network) as counter:
        network(image)
    read = sum(p.numel() for p in network.parameters() if id(p) in counter.read)
    return Count(counter.flops / 2, counter.activations, read, counter.traffic)


class _Counter(TorchDispatchMode):
    """Sees every operation of a pass: adds up the products, and writes down which parameters were read.

    FLOPs are torch's own formulas (`torch.utils.flop_counter`), with those for vectors, which it lacks. Looking at a
    parameter from another angle (`weight.t()`) does not read it, and neither does work on no rows at all, such as the
    last classifier's after every image has left.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.flops = self.activations = self.traffic = 0
        self.read: set[int] = set()
        self.parameter: dict[int, tuple[Tensor, int]] = {id(p): (p, id(p)) for p in network.parameters()}
        """Parameters and views of them, kept alive so that no other tensor gets their id, and whose view each is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = _tensors(out)
        known = [self.parameter[id(x)][1] for x in _tensors((args, kwargs)) if id(x) in self.parameter]
        if known and func.is_view:
            self.parameter |= {id(view): (view, known[0]) for view in results}
        elif any(x.numel() for x in results):
            self.read.update(known)
        product = func.overloadpacket
        if product in _FORMULAS:
            factors = args[1:3] if product in _ADDING else args[:2]
            self.flops += _FORMULAS[product](*args, **(kwargs or {}), out_val=out)
            self.activations += results[0].numel()
            self.traffic += sum(map(_distinct, (*factors, results[0])))
        return out


def _vector_flops(matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


def _added_vector_flops(added: Tensor, matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten.dot: _vector_flops,
    torch.ops.aten.addmv: _added_vector_flops,
}
_ADDING = frozenset({torch.ops.aten.addmm, torch.ops.aten.baddbmm, torch.ops.aten.addmv})
"""Products whose first argument is added to the result, and is no factor."""


def _distinct(tensor: Tensor) -> int:
    """Elements in memory: what was expanded is there once."""
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def _tensors(nested: Any) -> list[Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, Tensor)]


def _values(count: Count) -> tuple[float, ...]:
    return count.macs, count.activations, count.active_params, count.traffic


@contextmanager
def unfused(network: nn.Module) -> Iterator[None]:
    """Take fused kernels apart into matrix products: timm's attention by its own switch, all else by torch's."""
    switched = [m for m in network.modules() if getattr(m, "fused_attn", False)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for module in switched:
            module.fused_attn = False  # type: ignore[assignment]  # a plain attribute of timm's attention modules
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as libraries:
            libraries.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(m, nn.RNNBase) for m in network.modules()):
                libraries.enter_context(torch.backends.mkldnn.flags(enabled=False, allow_tf32=False))
                libraries.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in switched:
            module.fused_attn = True  # type: ignore[assignment]  # as above


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
