"""What is left of a network's tensors when it is cut: its own by name, the strategies' by their shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.backbone import Student, VisionTransformerStudent
from strategies.inner_widths import inner_axes
from strategies.surgery import EMBED, Axes, Axis, Cut, sizes_of, vit_axes

MODEL = "model."
"""Prefix of timm's tensors in a student."""


def axes_of(student: Student) -> Axes:
    """What the dimensions of a student's tensors count, by timm's names."""
    return vit_axes(student.model) if isinstance(student, VisionTransformerStudent) else inner_axes(student.model)


class Carry:
    """From a student's tensors to those of the same student after a cut, composed anew.

    Tensors of the timm network are cut along its axes. Of the strategies' modules nobody knows the axes; but the new
    student shows how large they are to be: a dimension that was a multiple of the tokens' width and is to be the same
    multiple of the new one is cut alike. Everything else that changed its shape begins anew.

    Args:
        student: before; it is only read.
        cut: what stays.
    """

    def __init__(self, student: Student, cut: Cut) -> None:
        self.cut, self.axes = cut, axes_of(student)
        sizes: Mapping[Axis, int] = sizes_of(student.model, self.axes)
        self.width = sizes.get(EMBED, 0)
        self.kept = cut.keep.get(EMBED)

    def name(self, name: str) -> str | None:
        """A tensor's name afterwards; `None` if it is gone."""
        if not name.startswith(MODEL):
            return name
        renamed = self.cut.renamed(name.removeprefix(MODEL))
        return None if renamed is None else MODEL + renamed

    def tensor(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        """What stays of a tensor, or of an average that is shaped like it; `None` if it has to begin anew.

        Args:
            name: before.
            shape: afterwards.
        """
        dims = self.axes.get(name.removeprefix(MODEL)) if name.startswith(MODEL) else None
        smaller = self.cut.tensor(tensor, dims) if dims else self._narrowed(tensor, shape)
        return smaller if smaller is not None and smaller.shape == shape else None

    def weight(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        """As `tensor`, of a weight: where heads get narrower, queries are scaled (`Cut.query_factor`)."""
        smaller = self.tensor(name, tensor, shape)
        if smaller is None or self.cut.head_dim is None or ".attn.qkv." not in name or not name.startswith(MODEL):
            return smaller
        q, rest = smaller.split([len(smaller) // 3, len(smaller) // 3 * 2])
        return torch.cat([q * self.cut.query_factor, rest])

    def load(self, network: Student, state: Mapping[str, Tensor]) -> list[str]:
        """Fill the new student with what is left of the old one's state.

        Returns:
            Names of the tensors that begin anew.
        """
        target = network.state_dict()
        filled = set()
        with torch.no_grad():
            for name, tensor in state.items():
                new = self.name(name)
                if new is None or new not in target:
                    continue
                smaller = self.weight(name, tensor, target[new].shape)
                if smaller is not None:
                    target[new].copy_(smaller)
                    filled.add(new)
        return sorted(target.keys() - filled)

    def _narrowed(self, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        """A strategy's tensor at its new shape; `None` if that is not a matter of the tokens' width."""
        if tensor.dim() != len(shape):
            return None
        for dim, (before, after) in enumerate(zip(tensor.shape, shape, strict=True)):
            if before == after:
                continue
            if self.kept is None or before % self.width or before // self.width * len(self.kept) != after:
                return None
            kept = self.kept.to(tensor.device)
            times = torch.arange(before // self.width, device=tensor.device)[:, None] * self.width
            tensor = tensor.index_select(dim, (times + kept).flatten())
        return tensor
