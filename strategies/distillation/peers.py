"""Students beside the student, and what each learns from the others.

Shapes: B images, C classes, K students.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from strategies.compose import student_of
from strategies.distillation.logits import soft_distillation


def divergence_from_others(logits: Sequence[Tensor], k: int, temperature: float) -> Tensor:
    """Mean over l ≠ k of T²·KL(softmax(z_l/T) ‖ softmax(z_k/T)), averaged over images (arXiv:1706.00384).

    Args:
        logits: of all students [B, C].
        k: the one that learns; the others' logits are taken as given.
        temperature: T > 0.

    Returns:
        Scalar.
    """
    others = [z.detach() for i, z in enumerate(logits) if i != k]
    return torch.stack([soft_distillation(logits[k], z, temperature) for z in others]).mean()


class Peers(nn.Module):
    """Further students, run in training only, on the same images."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Take timm networks."""
        super().__init__()
        self.students = nn.ModuleList(student_of(network) for network in networks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Peer → logits [B, C]."""
        return {str(i): student(images).logits for i, student in enumerate(self.students)}
