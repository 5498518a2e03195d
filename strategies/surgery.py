"""Cut timm networks: tensors get smaller, modules learn their new sizes, whole blocks leave. Nothing is masked.

Every tensor of a network is described by what its dimensions count (`vit_axes`). From this one table follows what has
to be cut together, what a group's importance sums over, and how an optimiser's averages are cut along with the weights.

Shapes: D width, H heads, E head width, M MLP channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from strategies.factors import blank_factors
from strategies.shapes import BlockShape, Shapes


class Axis(NamedTuple):
    """What a dimension of a tensor counts."""

    kind: str
    """`embed`: the D channels of all tokens. `qkv`: the 3·H·E rows of queries, keys and values. `heads`: the H·E
    outputs of the heads. `mlp`: the M channels inside an MLP. Others: channels inside a block of another network."""
    where: int | str | None = None
    """Block (`vit`), or module; `None` = the whole network."""


EMBED = Axis("embed")
Axes = Mapping[str, Mapping[int, Axis]]
"""Tensor → dimension → what it counts; dimensions that are never cut are left out."""

WIDE = {  # timm's names outside of the blocks, and the dimension that is D wide
    r"(cls_token|dist_token|reg_token|pos_embed)": 2,
    r"patch_embed\.(proj|norm)\.(weight|bias)": 0,
    r"(norm_pre|norm|fc_norm)\.(weight|bias)": 0,
    r"(head|head_dist)\.weight": 1,
}
IN_BLOCK: dict[str, dict[int, str]] = {
    r"norm[12]\.(weight|bias)": {0: "embed"},
    r"ls[12]\.gamma": {0: "embed"},
    r"attn\.qkv\.weight": {0: "qkv", 1: "embed"},
    r"attn\.qkv\.bias": {0: "qkv"},
    r"attn\.gate\.weight": {0: "heads", 1: "embed"},
    r"attn\.gate\.bias": {0: "heads"},
    r"attn\.proj\.weight": {0: "embed", 1: "heads"},
    r"attn\.proj\.bias": {0: "embed"},
    r"attn\.[qk]_norm\.(weight|bias)": {},
    r"mlp\.fc1\.weight": {0: "mlp", 1: "embed"},
    r"mlp\.fc1\.bias": {0: "mlp"},
    r"mlp\.fc2\.weight": {0: "embed", 1: "mlp"},
    r"mlp\.fc2\.bias": {0: "embed"},
}
UNCUT = r"(head|head_dist)\.bias|patch_embed\.backbone\..*"


def vit_axes(model: nn.Module) -> Axes:
    """What the dimensions of a plain Vision Transformer's tensors count.

    Args:
        model: timm's network in the loop. What strategies took out of it is simply not there.
    """
    axes: dict[str, dict[int, Axis]] = {}
    for name, _ in _tensors(model):
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if block is None:
            axes[name] = {dim: EMBED for pattern, dim in WIDE.items() if re.fullmatch(pattern, name)}
        else:
            kinds = next((k for pattern, k in IN_BLOCK.items() if re.fullmatch(pattern, block[2])), {})
            b = int(block[1])
            axes[name] = {dim: EMBED if kind == "embed" else Axis(kind, b) for dim, kind in kinds.items()}
    return {name: dims for name, dims in axes.items() if dims}


def not_known(model: nn.Module) -> list[str]:
    """Tensors of a plain Vision Transformer of which nobody knows which dimension is D wide."""
    known = [*WIDE, UNCUT, *(rf"blocks\.\d+\.{pattern}" for pattern in IN_BLOCK)]
    return [name for name, _ in _tensors(model) if not any(re.fullmatch(pattern, name) for pattern in known)]


def sizes_of(model: nn.Module, axes: Axes) -> dict[Axis, int]:
    """How many channels each axis has now."""
    tensors = dict(_tensors(model))
    return {axis: tensors[name].shape[dim] for name, dims in axes.items() for dim, axis in dims.items()}


@dataclass(frozen=True)
class Cut:
    """What stays of a network, and what it is like then."""

    shapes: Shapes
    """Afterwards."""
    keep: Mapping[Axis, Tensor]
    """Axis → positions that stay, ascending (int64); axes that are not named keep all. Blocks as they are counted
    before."""
    stays: tuple[int, ...] | None = None
    """Blocks that stay; `None` = all."""
    head_dim: tuple[int, int] | None = None
    """Width of the heads before and after, where it changes."""

    @property
    def query_factor(self) -> float:
        """Attention divides by √E. Where heads get narrower, queries are multiplied by √(E after / E before), so that
        the products of queries and keys mean what they meant."""
        return 1.0 if self.head_dim is None else (self.head_dim[1] / self.head_dim[0]) ** 0.5

    def tensor(self, tensor: Tensor, dims: Mapping[int, Axis]) -> Tensor:
        """What stays of one tensor."""
        for dim, axis in dims.items():
            if axis in self.keep:
                tensor = tensor.index_select(dim, self.keep[axis].to(tensor.device))
        return tensor

    def renamed(self, name: str) -> str | None:
        """A tensor's name afterwards, because the blocks that are left are counted anew; `None` if it is gone."""
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if block is None or self.stays is None:
            return name
        b = int(block[1])
        return f"blocks.{self.stays.index(b)}.{block[2]}" if b in self.stays else None


def attention_rows(qk: Tensor, v: Tensor, width: int) -> Tensor:
    """Rows of `attn.qkv` that stay.

    Args:
        qk, v: channels of queries and keys, and of values, that stay; positions in H·E.
        width: H·E before.
    """
    return torch.cat([qk, qk + width, v + 2 * width])


def head_channels(heads: Tensor, head_dim: int) -> Tensor:
    """Positions in H·E of all channels of some heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()


def apply(model: Any, axes: Axes, cut: Cut) -> None:
    """Cut a network in place. Draws no random numbers; parameters that are cut are new objects.

    Args:
        axes: of this network, as `vit_axes` or `inner_axes` gives them.
    """
    tensors = dict(_tensors(model))
    touched: dict[str, nn.Module] = {}
    with torch.no_grad():
        for name, dims in axes.items():
            if not any(axis in cut.keep for axis in dims.values()):
                continue
            owner_name, _, attribute = name.rpartition(".")
            owner, tensor = model.get_submodule(owner_name), tensors[name]
            smaller = cut.tensor(tensor.detach(), dims).contiguous()
            if isinstance(tensor, nn.Parameter):
                setattr(owner, attribute, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
            else:
                owner.register_buffer(attribute, smaller)
            touched[owner_name] = owner
    for module in touched.values():
        _tell_sizes(module)
    if EMBED in cut.keep:
        _tell_width(model, len(cut.keep[EMBED]))
    for axis in cut.keep:
        if axis.kind == "heads":
            _tell_heads(model.blocks[axis.where].attn, cut)
    if cut.stays is not None:
        model.blocks = nn.Sequential(*(model.blocks[b] for b in cut.stays))


def _tell_sizes(module: nn.Module) -> None:
    """Let a module whose tensors were cut know its size."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels and module.groups > 1
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.out_channels if depthwise else module.weight.shape[1] * module.groups
        module.groups = module.out_channels if depthwise else module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = module.weight.shape[0]
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)  # type: ignore[union-attr,arg-type,assignment]  # LayerNorm


def _tell_width(model: Any, width: int) -> None:
    """Let a Vision Transformer know how wide its tokens are, norms without weights too."""
    before = model.embed_dim
    model.embed_dim = model.num_features = model.head_hidden_size = width
    for module in model.modules():
        if getattr(module, "normalized_shape", None) == (before,) and getattr(module, "weight", None) is None:
            module.normalized_shape = (width,)


def _tell_heads(attn: Any, cut: Cut) -> None:
    """Let a timm `Attention` know its heads."""
    if cut.head_dim is not None:
        attn.head_dim, attn.scale = cut.head_dim[1], cut.head_dim[1] ** -0.5
    attn.attn_dim = attn.proj.in_features
    attn.num_heads = attn.attn_dim // attn.head_dim
    if cut.head_dim is not None:
        with torch.no_grad():
            for tensor in (attn.qkv.weight, attn.qkv.bias):
                if tensor is not None:
                    tensor[: attn.attn_dim].mul_(cut.query_factor)


def narrow_linear(layer: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A new linear layer with some outputs (rows) and inputs (columns) of another; index tensors, int64."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if rows is not None:
        weight, bias = weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)
    if columns is not None:
        weight = weight.index_select(1, columns)
    # On the meta device first: initialisation would draw from the random numbers that training is to see.
    cut = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    cut = cut.to_empty(device=weight.device)
    with torch.no_grad():
        cut.weight.copy_(weight)
        if bias is not None:
            cut.bias.copy_(bias)
    return cut


def reshape(model: Any, shapes: Shapes) -> None:
    """Cut a network, as timm builds it, to shapes. What is kept does not matter: weights are loaded afterwards."""
    if not shapes:
        return
    if shapes.widths:
        from strategies.inner_widths import inner_axes

        axes = inner_axes(model)
        found = {axis for dims in axes.values() for axis in dims.values()}
        keep = {axis: torch.arange(shapes.widths[str(axis.where)]) for axis in found if axis.where in shapes.widths}
        apply(model, axes, Cut(shapes, keep))
        return
    stays = tuple(shapes.left(len(model.blocks)))
    keep = {}
    if shapes.embed_dim is not None:
        keep[EMBED] = torch.arange(shapes.embed_dim)
    head_dim = None
    for new, old in enumerate(stays):
        block = model.blocks[old]
        before = block.attn.head_dim
        after = before if shapes.head_dim is None else shapes.head_dim
        head_dim = None if shapes.head_dim is None else (before, after)
        whole = BlockShape(block.attn.num_heads, block.mlp.fc1.out_features)
        num_heads, hidden = shapes.blocks.get(new, whole)
        channels = (torch.arange(num_heads)[:, None] * before + torch.arange(after)).flatten()
        if len(channels) < block.attn.attn_dim:
            keep[Axis("heads", old)] = channels
            keep[Axis("qkv", old)] = attention_rows(channels, channels, block.attn.attn_dim)
        if hidden < whole.mlp_hidden:
            keep[Axis("mlp", old)] = torch.arange(hidden)
    apply(model, vit_axes(model), Cut(shapes, keep, stays if shapes.removed else None, head_dim))
    for name, rank in shapes.ranks.items():
        blank_factors(model, name, rank)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
