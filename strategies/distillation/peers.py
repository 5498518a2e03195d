"""Students beside the student, and what each learns from the others.

Shapes: B images, C classes, K students.
"""

from __future__ import annotations

import copy
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


def draw_anew(network: nn.Module) -> nn.Module:
    """Draw every weight from a normal distribution with the mean and standard deviation of its tensor.

    Serves any architecture. Tensors of one value (norms, biases at the start) stay as they are.
    """
    with torch.no_grad():
        for weight in network.parameters():
            if weight.numel() > 1:
                spread, mean = torch.std_mean(weight)
                weight.copy_(mean + spread * torch.randn_like(weight))
    return network


class Peers(nn.Module):
    """Further students, run in training only, on the same images."""

    def __init__(self, model: nn.Module, num_peers: int) -> None:
        """Copy a timm network.

        Args:
            num_peers: how often.
        """
        super().__init__()
        self.students = nn.ModuleList(student_of(draw_anew(copy.deepcopy(model))) for _ in range(num_peers))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Peer → logits [B, C]."""
        return {str(i): student(images).logits for i, student in enumerate(self.students)}
