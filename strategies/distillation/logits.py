"""Losses between a student's and a teacher's class logits, as pure functions.

Shapes: B images, C classes. All are computed in float32, whatever the precision of the forward pass: a softmax over
bfloat16 logits has three digits.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

LogitLoss = Literal["soft", "hard"]


def soft_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes and averaged over images.

    T² keeps the gradient's size independent of T (Hinton et al. 2015, arXiv:1503.02531, section 2). The mean is over
    images, not over images and classes: that would weaken the term C times (DeiT's code does so).

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        temperature: T > 0.

    Returns:
        Scalar.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy on the class that the teacher predicts (DeiT, arXiv:2012.12877, equation 3).

    Args:
        student: logits [B, C].
        teacher: logits [B, C].

    Returns:
        Scalar.
    """
    return F.cross_entropy(student.float(), teacher.argmax(dim=-1))


def logit_distillation(kind: LogitLoss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of this kind; `hard` has no temperature."""
    if kind == "hard":
        return hard_distillation(student, teacher)
    return soft_distillation(student, teacher, temperature)
