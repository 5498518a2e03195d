"""Gradients of a stage's loss over some of its training images, which importance reads. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from orchestrator.training.distributed import WorkerGroup
from strategies.backbone import Student
from strategies.gradients import Gradients


def gradients_over(
    student: Student,
    batches: Iterable[tuple[Any, ...]],
    loss_of: Callable[..., Tensor],
    group: WorkerGroup,
    scale: float = 1.0,
) -> Gradients:
    """Mean gradients, and mean squared gradients of micro-batches, over all workers, at timm's parameters; 0 where
    nothing is trained.

    Args:
        student: in training mode; running statistics end as they began.
        batches: micro-batches of this worker, at least one; as many on each worker.
        loss_of: micro-batch → its mean loss.
        scale: factor of the loss on the way back, taken out of the gradients again; without one, small gradients are
            lost in float16.
    """
    named = dict(student.model.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]
    mean = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    square = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    num_batches = 0
    for batch in batches:
        found = torch.autograd.grad(loss_of(*batch) * scale, [named[name] for name in trained], allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                unscaled = gradient.float() / scale
                mean[name] += unscaled
                square[name] += unscaled.square()
        num_batches += 1
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    assert num_batches, "there is always a batch before the last step"
    total = num_batches * group.world_size
    return Gradients(
        {name: group.sum_tensor(value) / total for name, value in mean.items()},
        {name: group.sum_tensor(value) / total for name, value in square.items()},
    )
