"""Losses between a student's and a teacher's class logits, as pure functions.

Shapes: B images, C classes. All are computed in float32, whatever the precision of the forward pass: a softmax over
bfloat16 logits has three digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
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


def decoupled_distillation(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float,
    target_weight: float,
    nontarget_weight: float,
) -> Tensor:
    """T² · (α · KL of "target or not" + β · KL among the other classes), each averaged over images.

    With b the pair (probability of the target class, probability of all others together) and r the softmax over the
    other classes alone, KL(p ‖ q) = KL(b_p ‖ b_q) + (1 − p_target) · KL(r_p ‖ r_q). Here the second term has a weight
    of its own instead of the teacher's doubt (DKD, Zhao et al. 2022, arXiv:2203.08679, equation 7).

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        target: class indices [B] or probabilities [B, C]; see `target_class`.
        temperature: T > 0.
        target_weight: α.
        nontarget_weight: β.

    Returns:
        Scalar.
    """
    label = target_class(target)
    binary: list[Tensor] = []
    among: list[Tensor] = []
    for logits in (student, teacher):
        log_p = F.log_softmax(logits.float() / temperature, dim=-1)
        others = without_class(log_p, label)
        binary.append(torch.stack([_of_class(log_p, label), others.logsumexp(dim=-1)], dim=-1))
        among.append(F.log_softmax(others, dim=-1))
    target_term, other_term = (F.kl_div(q, p, reduction="batchmean", log_target=True) for q, p in (binary, among))
    return temperature**2 * (target_weight * target_term + nontarget_weight * other_term)


def normalized_distillation(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float,
    target_weight: float,
    nontarget_weight: float,
) -> Tensor:
    """−α · t_y · log s_y − γ · T² · Σ over the other classes of N(t) · log N(s), averaged over images.

    t and s are the softmax of teacher and student, y the target class; N renormalises over the other classes, at
    temperature T. The first term has no temperature (NKD, Yang et al. 2023, arXiv:2303.13005).

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        target: class indices [B] or probabilities [B, C]; see `target_class`.
        temperature: T > 0.
        target_weight: α; 1 in the paper.
        nontarget_weight: γ.

    Returns:
        Scalar.
    """
    label = target_class(target)
    student, teacher = student.float(), teacher.float()
    log_s, log_t = (_of_class(F.log_softmax(x, dim=-1), label) for x in (student, teacher))
    among_s, among_t = (F.log_softmax(without_class(x, label) / temperature, dim=-1) for x in (student, teacher))
    target_term = -(log_t.exp() * log_s).mean()
    other_term = -(among_t.exp() * among_s).sum(dim=-1).mean() * temperature**2
    return target_weight * target_term + nontarget_weight * other_term


def relational_distillation(
    student: Tensor, teacher: Tensor, temperature: float, inter_weight: float, intra_weight: float
) -> Tensor:
    """T² · (β · (1 − mean over images of ρ(s_i, t_i)) + γ · (1 − mean over classes of ρ(s_·c, t_·c))).

    ρ is Pearson's correlation, s and t are softmax(logits / T): how an image's classes relate to one another, and how
    a class's images do (DIST, Huang et al. 2022, arXiv:2205.10536). Rows or columns in which nothing
    varies count as uncorrelated. The second term compares the images of this batch: of one micro-batch on one worker.

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        temperature: T > 0.
        inter_weight: β.
        intra_weight: γ.

    Returns:
        Scalar.
    """
    s, t = ((x.float() / temperature).softmax(dim=-1) for x in (student, teacher))
    inter, intra = (1 - correlation(s, t, dim=dim).mean() for dim in (1, 0))
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def exits_distillation(exits: Sequence[Tensor], last: Tensor, temperature: float, *, last_alone: bool) -> Tensor:
    """Mean over exits of `soft_distillation` from later answers, which are detached.

    Source: Phuong and Lampert 2019, ICCV, section 3; there with cross-entropy, whose gradient is the same.

    Args:
        exits: logits [B, C] of each exit, the earliest first; at least one.
        last: the network's own logits [B, C].
        temperature: T > 0.
        last_alone: whether the last answer alone teaches; otherwise each exit learns from the mean over its later ones.

    Returns:
        Scalar.
    """
    answers = [*exits, last]
    terms = []
    for i, answer in enumerate(exits):
        guides = answers[-1:] if last_alone else answers[i + 1 :]
        terms.append(torch.stack([soft_distillation(answer, guide.detach(), temperature) for guide in guides]).mean())
    return torch.stack(terms).mean()


def correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of a and b along a dimension; 0 where one of them is constant."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=dim)


def target_class(target: Tensor) -> Tensor:
    """The class that counts as the target [B] (int64): with mixed or smoothed targets [B, C] the most probable one, the
    first of equals, as the authors of NKD do."""
    return target if target.dim() == 1 else target.argmax(dim=-1)


def without_class(x: Tensor, label: Tensor) -> Tensor:
    """x [B, C] without one class of each image [B] (int64): [B, C − 1], the others in their order."""
    others = torch.arange(x.shape[1] - 1, device=x.device).expand(len(x), -1)
    return x.gather(1, others + (others >= label.unsqueeze(1)).long())


def _of_class(x: Tensor, label: Tensor) -> Tensor:
    """x [B, C] at one class of each image: [B]."""
    return x.gather(1, label.unsqueeze(1)).squeeze(1)


def logit_distillation(kind: LogitLoss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of this kind; `hard` has no temperature."""
    if kind == "hard":
        return hard_distillation(student, teacher)
    return soft_distillation(student, teacher, temperature)
