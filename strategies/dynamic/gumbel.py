"""Yes-or-no decisions that can be learned: sampled with Gumbel noise, hard going forward, soft going backward.

The noise comes from torch's global generator, which the training loop seeds at every step. Decisions are exactly 0 or
1; their gradient is that of the soft value (straight-through).

Source: Jang et al. 2017 (arXiv:1611.01144) and Maddison et al. 2017 (arXiv:1611.00712).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """One of K, drawn with the probabilities softmax(logits): one-hot going forward, softmax((logits + g) / τ) going
    backward, g being Gumbel noise.

    Args:
        logits: [..., K]; log-probabilities are logits, too.
        temperature: τ; it shapes the gradient, not the draw.

    Returns:
        [..., K], float32.
    """
    soft = F.gumbel_softmax(logits.float(), temperature, hard=False, dim=-1)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return straight_through(hard, soft)


def hard_sigmoid(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """1 with probability σ(logits), else 0, going forward; σ((logits + g₁ − g₂) / τ) going backward.

    Args:
        logits: any shape.
        temperature: τ; it shapes the gradient, not the draw.

    Returns:
        Shaped like `logits`, float32.
    """
    logits = logits.float()
    first, second = (torch.empty_like(logits).exponential_().log() for _ in range(2))
    soft = ((logits + second - first) / temperature).sigmoid()
    return straight_through((soft > 0.5).float(), soft)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, bit for bit, with the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())
