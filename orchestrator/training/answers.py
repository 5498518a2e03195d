"""A teacher's answers, cut to the K most probable classes, and back to logits. Pure functions.

Shapes: B images, C classes, K kept.

What is kept of a probability is its logarithm, in half precision. A probability itself would lose what distillation
asks for: below 6e-8 it would be 0, while a temperature of 3 makes 0.004 of it; and near 1 its steps of 5e-4 would
swallow the missing mass. For the same reason the logarithm of what each missing class has is kept beside them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Answers(NamedTuple):
    """The likeliest classes of B images."""

    classes: Tensor
    """[B, K] (int64), the likeliest first; in files the smallest type that holds them."""
    log_probability: Tensor
    """[B, K] (float16): natural logarithms of their probabilities."""
    log_rest: Tensor
    """[B] (float16): logarithm of (1 − Σ) / (C − K), what each of the other classes has on average."""


def compress(logits: Tensor, top_k: int) -> Answers:
    """The K most probable classes of each image (TinyViT, arXiv:2207.10666, section 3.1).

    Args:
        logits: [B, C], any floating type.
        top_k: K, at most C.
    """
    log_p = logits.float().log_softmax(-1)
    num_classes = log_p.shape[1]
    kept, index = log_p.topk(top_k, dim=-1)
    # Summed over the others, not 1 − Σ: where the teacher is sure, that difference would be rounding alone.
    rest = log_p.scatter(1, index, -math.inf).logsumexp(-1) - math.log(max(num_classes - top_k, 1))
    smallest = torch.finfo(torch.float16).min
    return Answers(index, kept.clamp(min=smallest).half(), rest.clamp(min=smallest).half())


def expand(answers: Answers, num_classes: int) -> Tensor:
    """Logits [B, C] (float32) whose softmax has the kept probabilities, the missing mass spread evenly over the rest.

    They differ from the teacher's own logits by one number an image, to which no softmax is sensitive.

    Args:
        answers: of `compress`.
        num_classes: C.
    """
    log_p = answers.log_probability.float()
    rest = answers.log_rest.float().unsqueeze(1).expand(-1, num_classes)
    return rest.scatter(1, answers.classes, log_p)
