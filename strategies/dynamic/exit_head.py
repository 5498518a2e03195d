"""Exit heads, and the losses that train them.

Shapes: B images, R images still computed, N tokens, P prefix tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.state import State


class LinearExit(nn.Module):
    """LayerNorm and a linear layer on the class token, or on the mean patch of networks without one.

    Attributes:
        threshold: 0-d; not saved with the weights, because the spec sets it.
    """

    threshold: Tensor

    def __init__(self, model: Any, threshold: float) -> None:
        super().__init__()
        device = next(model.parameters()).device
        self.on_class_token = model.cls_token is not None
        self.norm = nn.LayerNorm(model.embed_dim, device=device)
        self.fc = nn.Linear(model.embed_dim, model.num_classes, device=device)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)
        self.register_buffer("threshold", torch.tensor(threshold, device=device), persistent=False)

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits [R, C], and which images are confident enough to leave [R] (bool)."""
        logits = self.fc(self.summary(state))
        return logits, confidence(logits) > self.threshold

    def summary(self, state: State) -> Tensor:
        """What the classifier reads [R, D]."""
        found: Tensor = self.norm(state.prefix(0) if self.on_class_token else state.mean_patch())
        return found


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability [R] of logits [R, C], in float32; never above 1."""
    return logits.float().softmax(dim=-1).amax(dim=-1).clamp(max=1.0)


def exit_cross_entropy(exits: Mapping[int, Tensor], target: Tensor, depth: int) -> Tensor:
    """Σ over exits of (block + 1) / depth · cross-entropy: the deeper the exit, the more it counts.

    Source: arXiv:2308.00255 weighs exits by their block's number; here scaled so that the final head's weight is 1.

    Args:
        exits: block, counted from 0 → logits [B, C].
        target: class indices [B] or probabilities [B, C].
        depth: blocks of the network.
    """
    return torch.stack([(b + 1) / depth * F.cross_entropy(logits, target) for b, logits in exits.items()]).sum()


def exit_divergence(exits: Mapping[int, Tensor], guide: Tensor, depth: int) -> Tensor:
    """Σ over exits of (block + 1) / depth · KL(guide ‖ exit), as a mean over the batch (`batchmean`).

    Args:
        exits: block, counted from 0 → logits [B, C].
        guide: logits [B, C] that the exits imitate; give them detached.
        depth: blocks of the network.
    """
    wanted = guide.log_softmax(dim=-1)
    divergence = [
        (b + 1) / depth * F.kl_div(logits.log_softmax(dim=-1), wanted, reduction="batchmean", log_target=True)
        for b, logits in exits.items()
    ]
    return torch.stack(divergence).sum()
