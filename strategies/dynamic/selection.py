"""Which patches are worth computing: chosen by the class token's attention, and what becomes of the others.

Shapes: R images, N tokens, P prefix tokens, n = N − P patches, K tokens that go on, M = N − K that do not, H heads,
D width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.state import State


class Choice(NamedTuple):
    """Every token's position once, ascending in both parts."""

    going: Tensor
    """Positions of the tokens that go on [R, K] (int64), all prefix tokens first."""
    waiting: Tensor
    """Positions of the other patches [R, M] (int64)."""


def num_kept(num_patches: int, keep_rate: float) -> int:
    """⌈keep_rate · n⌉ patches, whatever floats make of the product; at least one of any."""
    return min(num_patches, max(1, math.ceil(keep_rate * num_patches - 1e-9)))


def attention_received(class_attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """How much each patch is attended to by the class token, as a mean over heads [R, n].

    Args:
        class_attention: [R, H, N].
        num_prefix_tokens: P; prefix tokens are not to be chosen.
    """
    return class_attention[:, :, num_prefix_tokens:].mean(dim=1)


def choose(scores: Tensor, num: int, num_prefix_tokens: int) -> Choice:
    """The patches with the largest scores go on; of equal ones the earlier.

    Args:
        scores: of the patches [R, n].
        num: patches that go on, at most n.
        num_prefix_tokens: P, which always go on.
    """
    order = scores.detach().argsort(dim=1, descending=True, stable=True) + num_prefix_tokens
    prefix = torch.arange(num_prefix_tokens, device=scores.device).expand(scores.shape[0], -1)
    going = torch.cat([prefix, order[:, :num].sort(dim=1).values], dim=1)
    return Choice(going, order[:, num:].sort(dim=1).values)


def drop(state: State, choice: Choice) -> State:
    """Only the chosen tokens go on; where the others were is forgotten."""
    return state.gather(choice.going)


def fuse(state: State, choice: Choice, weights: Tensor, track_source: bool) -> State:
    """The chosen tokens go on, and behind them one more patch: the weighted sum of the others.

        x_fused = Σ over waiting j of w_j · x_j

    Source: Liang et al. 2022, EViT (arXiv:2202.07800), section 3: the weights are attention, not scaled to sum to 1.
    Its position is the mean of theirs, weighted alike. Where tokens have sizes, it stands for as many patches as they
    do together.

    Args:
        state: dense, without a soft mask, [R, N, D].
        choice: from `choose`.
        weights: of the patches [R, n]; gradients flow through them.
        track_source: keep `state.source` up to date: what was fused is found at the fused token.
    """
    assert state.keep is None, "`claims` ask for tokens that are not masked"
    going, waiting = choice
    P, K = state.num_prefix_tokens, going.shape[1]
    of_waiting = torch.zeros_like(weights).scatter(1, waiting - P, 1.0)
    # Products over all patches, with zeros at those that go on, spare a copy of those that do not.
    share = (weights * of_waiting).unsqueeze(1)

    def behind(kept: Tensor | None, fused: Tensor) -> Tensor | None:
        return None if kept is None else torch.cat([kept, fused.to(kept.dtype)], dim=1)

    kept = state.gather(going)
    x = behind(kept.x, share.to(state.x.dtype) @ state.x[:, P:])
    assert x is not None
    size, position, source = kept.size, kept.position, None
    if state.size is not None:
        size = behind(size, of_waiting.to(state.size.dtype).unsqueeze(1) @ state.size[:, P:])
    if state.position is not None:
        mean = share / share.sum(dim=2, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        position = behind(position, mean.to(state.position.dtype) @ state.position[:, P:])
    if track_source:
        places = torch.arange(K, device=going.device).expand_as(going)
        place = torch.full((x.shape[0], K + waiting.shape[1]), K, device=going.device).scatter(1, going, places)
        source = place if state.source is None else place.gather(1, state.source)
    return replace(kept, x=x, size=size, position=position, source=source)
