"""The loss of a stage: the task's cross-entropy plus the weighted terms of every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.api import Strategy
from strategies.state import Output

TASK = "task"
"""Name of the task's cross-entropy among the terms, and of its factor among a strategy's weights."""


def total_loss(
    strategies: Sequence[Strategy[Any]],
    out: Output,
    teacher: Output | None,
    target: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """task weight · cross-entropy + Σ weight · term, the task weight being the product over all strategies.

    Terms of weight 0 stay in the graph, so that every parameter gets a gradient and DDP waits for none.

    Args:
        strategies: those of the stage; a term without a weight counts once.
        out: the student's output in training mode.
        teacher: the teacher's output on the same images; `None` without teacher.
        target: class indices [B] (int64), or class probabilities [B, C].
        label_smoothing: share of the target spread evenly over all classes, for the task and for every strategy alike
            (probabilities come from mixing, which has applied it already).

    Returns:
        The scalar loss, and every unweighted term under `task` or `<strategy>.<term>`, detached.
    """
    smoothing = label_smoothing if target.dim() == 1 else 0.0
    task = F.cross_entropy(out.logits.float(), target, label_smoothing=smoothing)
    if smoothing:
        target = smoothed(target, out.logits.shape[-1], smoothing)
    terms: dict[str, Tensor] = {TASK: task.detach()}
    task_weight = 1.0
    weighted: list[Tensor] = []
    for strategy in strategies:
        weights = strategy.weights()
        task_weight *= weights.get(TASK, 1.0)
        for name, term in strategy.losses(out, teacher, target).items():
            assert name != TASK, f"{strategy.name}: `{TASK}` is the task's own cross-entropy"
            terms[f"{strategy.name}.{name}"] = term.detach()
            weighted.append(weights.get(name, 1.0) * term)
    loss = task_weight * task
    for term in weighted:
        loss = loss + term
    return loss, terms


def smoothed(target: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Class indices [B] as probabilities [B, C] (float32): 1 − ε + ε/C for the class, ε/C for each other.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    return (
        F.one_hot(target, num_classes)
        .float()
        .lerp(torch.full((), 1 / num_classes, device=target.device), label_smoothing)
    )
