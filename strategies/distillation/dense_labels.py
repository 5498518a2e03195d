"""Losses on the answers that two networks give to each place of an image alone.

Shapes: B images, n = h·w places of a network's last grid, C classes. All in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.distillation.feature_distance import grid_size, grid_tokens, to_map
from strategies.distillation.logits import logit_distillation


def area_mean(answers: Tensor, size: tuple[int, int]) -> Tensor:
    """Answers [B, n, C] of a square grid averaged over the cells of a grid of `size` (height, width): [B, h'·w', C].

    A cell's mean weighs each place by the area that they share, so grids need not divide one another. Two products of
    matrices, because the gradient of adaptive pooling is not deterministic on CUDA.
    """
    here = grid_size(answers, 0)
    if here == size:
        return answers
    rows, columns = (_shares(a, b, answers) for a, b in zip(here, size, strict=True))
    return torch.einsum("ih,bchw,jw->bijc", rows, to_map(answers, here), columns).flatten(1, 2)


def _shares(here: int, there: int, like: Tensor) -> Tensor:
    """Share of each of `here` cells in each of `there` cells of the same line [there, here]; rows sum to 1."""
    step = here / there
    first = torch.arange(there, device=like.device, dtype=like.dtype).unsqueeze(1) * step
    cell = torch.arange(here, device=like.device, dtype=like.dtype)
    return (torch.minimum(first + step, cell + 1) - torch.maximum(first, cell)).clamp(min=0) / step


def spatial_distillation(
    student: Tensor,
    dense_teacher: Tensor,
    teacher: Tensor,
    local_share: float,
    kind: Literal["hard", "soft"],
    temperature: float,
) -> Tensor:
    """Distillation at every place, from λ · the teacher's answer there + (1 − λ) · its answer to the whole image.

    Source: Zhao et al. 2023 (CSKD), arXiv:2307.08500, cumulative knowledge fusion. Both networks' answers are averaged
    over the coarser of their grids: with DeiT (14·14) and a convolutional teacher (7·7), the teacher's.

    Args:
        student: the student's logits at each place [B, n, C].
        dense_teacher: the teacher's [B, n', C].
        teacher: the teacher's logits of the image [B, C].
        local_share: λ, 0 to 1.
        kind: `hard` = cross-entropy on the class that is largest in the mixture; `soft` = T²·KL.
        temperature: T of `soft`.

    Returns:
        Scalar: the mean over images and places.
    """
    ours, theirs = grid_size(student, 0), grid_size(dense_teacher, 0)
    size = min(ours[0], theirs[0]), min(ours[1], theirs[1])
    seen, local = area_mean(student.float(), size), area_mean(dense_teacher.float(), size)
    wanted = local_share * local + (1 - local_share) * teacher.float().unsqueeze(1)
    return logit_distillation(kind, seen.flatten(0, 1), wanted.flatten(0, 1), temperature)


def token_labels(dense_teacher: Tensor, size: tuple[int, int], top_k: int) -> Tensor:
    """Labels of each place: softmax over the k classes that the teacher finds likeliest there, 0 for all others.

    Source: Jiang et al. 2021 (LV-ViT), arXiv:2104.10858.

    Args:
        dense_teacher: the teacher's logits at each place [B, n', C]; resampled bilinearly.
        size: (height, width) of the labels' grid.
        top_k: k, 1 to C.

    Returns:
        Probabilities [B, h·w, C].
    """
    scores = grid_tokens(dense_teacher.float(), 0, size=size)
    best = scores.topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter_(-1, best.indices, best.values.softmax(dim=-1))


def labelling_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B, n, C] with labels [B, n, C], averaged over images and places (LV-ViT)."""
    return F.cross_entropy(student.float().flatten(0, 1), labels.flatten(0, 1))
