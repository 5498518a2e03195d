"""Compare how the tokens of two networks' attention relate, whatever their widths and numbers of heads.

Shapes: B images, N tokens, H heads, E head width, A = H · E (each network its own).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from strategies.distillation.feature_distance import grid_tokens


def joined_heads(
    projections: Tensor, num_prefix_tokens: int, *, class_token: bool, size: tuple[int, int] | None = None
) -> Tensor:
    """Queries, keys and values with their heads behind one another, on a grid of a given size.

    Args:
        projections: [3, B, H, N, E], prefix tokens first, patches row by row.
        num_prefix_tokens: number of prefix tokens.
        class_token: whether to keep the class token; other prefix tokens are left out.
        size: (height, width) to resample the patches to, bilinearly; `None` = as they are.

    Returns:
        [3, B, N', A].
    """
    B = projections.shape[1]
    tokens = projections.float().transpose(2, 3).flatten(3).flatten(0, 1)
    return grid_tokens(tokens, num_prefix_tokens, class_token=class_token, size=size).unflatten(0, (3, B))


def relation(a: Tensor, b: Tensor, num_heads: int) -> Tensor:
    """Scores of relation heads: [B, N, A] and [B, N, A] → a · bᵀ / √(A / heads), [B, heads, N, N].

    The channels are cut into `num_heads` runs of equal length, which must divide A (MiniLM v2's relation heads, as
    MiniViT and TinyMIM use them: networks with different numbers of heads can be compared).
    """
    a, b = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (a, b))
    return a @ b.mT / math.sqrt(a.shape[-1])


def relation_cross_entropy(
    ours: Tensor, theirs: Tensor, relations: Sequence[tuple[int, int]], num_heads: int
) -> Tensor:
    """−Σ softmax(teacher's relation) · log softmax(student's relation), summed over the tokens that one looks at.

    Source: Zhang et al. 2022 (MiniViT), arXiv:2204.07154, self-attention distillation; Ren et al. 2023 (TinyMIM),
    arXiv:2301.01296, relation distillation, with KL: the same gradient.

    Args:
        ours: the student's queries, keys and values [3, B, N, A], in float32.
        theirs: the teacher's [3, B, N, A'], in float32.
        relations: which of the three meet which: (0, 1) are queries and keys.
        num_heads: relation heads; must divide A and A'.

    Returns:
        Scalar: the mean over relations, heads, images and tokens. Its least value is the teacher's entropy, not 0.
    """
    total = ours.new_zeros(())
    for i, j in relations:
        seen = F.log_softmax(relation(ours[i], ours[j], num_heads), dim=-1)
        wanted = relation(theirs[i], theirs[j], num_heads).softmax(dim=-1)
        total = total - (wanted * seen).sum(dim=-1).mean()
    return total / len(relations)


def most_heads(limit: int, *widths: int) -> int:
    """The largest number of relation heads up to a limit that divides all widths."""
    return max(h for h in range(1, limit + 1) if all(width % h == 0 for width in widths))
