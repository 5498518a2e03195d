"""Bipartite soft matching: which tokens are merged, and the merge itself. Pure tensor functions.

Source: Bolya et al. 2023, "Token Merging: Your ViT But Faster" (arXiv:2210.09461), section 3 and appendix D. How the
matched tokens become one differs between strategies; the matching does not.

Shapes: B batch, N tokens, P protected (prefix) tokens in front, r tokens removed, E width of the metric, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matching(NamedTuple):
    """Which tokens are merged into which. Places count in the sequence after merging."""

    kept: Tensor
    """Position before merging of the token that stands at each place [B, N − r] (int64)."""
    merged: Tensor
    """Positions of the tokens that are merged away [B, r] (int64)."""
    into: Tensor
    """Place of the token that takes each of them in [B, r] (int64)."""


def num_merged(num_tokens: int, num_protected: int, r: int) -> int:
    """Tokens that one step removes: r, but at most half of those that are not protected."""
    return min(r, (num_tokens - num_protected) // 2)


def match(metric: Tensor, r: int, num_protected: int) -> Matching:
    """Match tokens at even positions (A) with their most similar token at an odd position (B); merge the r best.

    Protected tokens are in neither set. The paper gives their scores −∞ instead, which is the same.

    Args:
        metric: what similarity is taken of [B, N, E]; its scale does not matter.
        r: tokens to remove, at most `num_merged(N, P, r)`.
        num_protected: P, tokens in front that take no part.

    Returns:
        The matching. Order after merging: protected tokens, unmerged A by position, B by position.
    """
    B, N, _ = metric.shape
    assert 0 < r <= num_merged(N, num_protected, r)
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    first_a, first_b = num_protected + num_protected % 2, num_protected + 1 - num_protected % 2
    best, nearest = (metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, unmerged = order[:, :r], order[:, r:].sort(dim=-1).values
    num_before_b = num_protected + unmerged.shape[1]
    protected = torch.arange(num_protected, device=metric.device).expand(B, -1)
    odd = torch.arange(first_b, N, 2, device=metric.device).expand(B, -1)
    return Matching(
        kept=torch.cat([protected, first_a + 2 * unmerged, odd], dim=1),
        merged=first_a + 2 * merged,
        into=num_before_b + nearest.gather(1, merged),
    )


def merge(x: Tensor, size: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Replace matched tokens by their mean, weighted by how many patches each stands for.

    Tokens that take nothing in keep their value exactly.

    Args:
        x: tokens [B, N, D].
        size: patches that each token stands for [B, N, 1]; `None` = one each.
        matching: from `match`.

    Returns:
        Tokens [B, N − r, D], and their sizes [B, N − r, 1] (float32 unless `size` has another type).
    """
    B, N, D = x.shape
    kept, merged, into = matching
    if size is None:
        size = torch.ones(B, N, 1, device=x.device)
    size = size.squeeze(-1)
    size_kept, size_merged = size.gather(1, kept), size.gather(1, merged)
    total = size_kept.scatter_add(1, into, size_merged)
    # Rows of the flattened batch are copied whole, which is faster than an element-wise gather along dimension 1.
    batch = torch.arange(B, device=x.device).unsqueeze(1)
    tokens = x.reshape(B * N, D)
    y = tokens.index_select(0, (kept + batch * N).flatten())
    y = y.mul_((size_kept / total).to(x.dtype).view(-1, 1))
    share = (size_merged / total.gather(1, into)).to(x.dtype).view(-1, 1)
    taken = tokens.index_select(0, (merged + batch * N).flatten()) * share
    y = y.index_add_(0, (into + batch * kept.shape[1]).flatten(), taken)
    return y.view(B, -1, D), total.unsqueeze(-1)


def total_size(size: Tensor | None, matching: Matching) -> Tensor:
    """Patches that each token stands for after merging [B, N − r, 1].

    Args:
        size: before merging [B, N, 1]; `None` = one each.
        matching: from `match`.
    """
    kept, merged, into = matching
    if size is None:
        one = torch.ones(1, 1, device=kept.device)
        return one.expand_as(kept).scatter_add(1, into, one.expand_as(merged)).unsqueeze(-1)
    size = size.squeeze(-1)
    return size.gather(1, kept).scatter_add(1, into, size.gather(1, merged)).unsqueeze(-1)


def lengthen(y: Tensor, x: Tensor, matching: Matching) -> Tensor:
    """Make every merged token as long as the longest that went into it: MLERP.

        y_g ← y_g / ‖y_g‖ · max over the group's members i of ‖x_i‖

    Source: Kim et al. 2023, "Token Fusion" (arXiv:2312.01026), section 3. Tokens that took nothing in stay exact.

    Args:
        y: after merging [B, N − r, D].
        x: before [B, N, D].
        matching: from `match`.
    """
    kept, merged, into = matching
    length = x.norm(dim=-1)
    longest = length.gather(1, kept).scatter_reduce(1, into, length.gather(1, merged), "amax")
    return y * (longest / y.norm(dim=-1).clamp_min(1e-12)).unsqueeze(-1)


def follow(source: Tensor | None, matching: Matching) -> Tensor:
    """Update the map from original positions to places.

    Args:
        source: position before merging of each original token [B, P + n] (int64); `None` = its own.
        matching: from `match`.

    Returns:
        Place after merging of each original token [B, P + n] (int64).
    """
    kept, merged, into = matching
    places = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    place = torch.empty(kept.shape[0], kept.shape[1] + merged.shape[1], dtype=torch.int64, device=kept.device)
    place = place.scatter(1, kept, places).scatter(1, merged, into)
    return place if source is None else place.gather(1, source)
