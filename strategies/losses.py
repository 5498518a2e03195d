"""The loss of a stage: the task's cross-entropy plus the weighted terms of every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.api import Strategy
from strategies.state import Output


def total_loss(
    strategies: Sequence[Strategy[Any]],
    out: Output,
    teacher: Output | None,
    target: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """task weight · cross-entropy + Σ weight · term, the task weight being the product over all strategies.

    Args:
        target: class indices [B], or class probabilities [B, C].
        label_smoothing: of the task's cross-entropy (for probabilities the mixing has applied it already).

    Returns:
        The scalar loss, and every unweighted term under `task` or `<strategy>.<term>`, detached.
    """
    smoothing = label_smoothing if target.dim() == 1 else 0.0
    task = F.cross_entropy(out.logits, target, label_smoothing=smoothing)
    terms: dict[str, Tensor] = {"task": task.detach()}
    task_weight = 1.0
    loss = torch.zeros_like(task)
    for strategy in strategies:
        weights = strategy.weights()
        task_weight *= weights.get("task", 1.0)
        for name, term in strategy.losses(out, teacher, target).items():
            terms[f"{strategy.name}.{name}"] = term.detach()
            loss = loss + weights.get(name, 1.0) * term
    return loss + task_weight * task if task_weight else loss, terms
