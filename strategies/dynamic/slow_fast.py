"""Slow and fast tokens as seams, and the two heads.

Source: Xu et al. 2022, "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer" (arXiv:2108.01390),
and for groups of blocks and heads the authors' DeiT model.

Shapes: R images, N tokens, P prefix tokens, K slow tokens with prefix, M fast tokens, D width, C classes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from strategies.aside import rejoin, set_aside
from strategies.attention import Look
from strategies.dynamic.selection import choose, num_kept
from strategies.state import Output, State


class Score:
    """The token seam of a block whose class attention counts.

    The score of every token [R, N] travels in `State.notes`, in the order [tokens that go on, tokens aside].
    """

    def __init__(self, name: str, *, first: bool) -> None:
        """`first`: scores begin here. `name`: of the strategy."""
        self.name, self.first = name, first

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """½ old + ½ new for the tokens that this block computed."""
        assert look.class_attention is not None, "`claims` asks for the class token's attention"
        new = look.class_attention.detach().sum(dim=1)
        if self.first:
            return state.noting(self.name, new)
        old = state.notes[self.name]
        slow = old.shape[1] - _num_aside(state)  # the representative stands behind them and has none
        updated = (old[:, :slow] + new[:, :slow]) / 2
        return state.noting(self.name, torch.cat([updated, old[:, slow:]], dim=1))


class Regroup:
    """Before a block: the fast tokens of the last group come back, and others are chosen.

    Attributes:
        keep_rate: share of the patches that become slow; `None` = the last group is over.
    """

    def __init__(self, name: str, keep_rate: float | None, representative: bool) -> None:
        self.name, self.keep_rate, self.representative = name, keep_rate, representative

    def __call__(self, state: State) -> State:
        """Put back, sort, set aside."""
        if state.aside is not None:
            state = self.together(state)
        if self.keep_rate is None:
            return state
        P = state.num_prefix_tokens
        num_patches = state.x.shape[1] - P
        num = num_kept(num_patches, self.keep_rate)
        if num == num_patches:
            return state
        score = state.notes[self.name]
        choice = choose(score[:, P:], num, P)
        state = set_aside(state, *choice).noting(self.name, score.gather(1, torch.cat(choice, dim=1)))
        return with_representative(state, score.gather(1, choice.waiting)) if self.representative else state

    def together(self, state: State) -> State:
        """All tokens at their places, and their scores too."""
        assert state.aside is not None
        score = state.notes[self.name]
        waited = None
        if self.representative:
            num_waiting = _num_aside(state)
            state, waited = take_change(state, score[:, -num_waiting:])
        assert state.aside is not None
        return rejoin(state, waited).noting(self.name, score.gather(1, state.aside.place))


def with_representative(state: State, weights: Tensor) -> State:
    """Append the mean of the tokens aside, weighted by their scores [R, M]."""
    assert state.aside is not None
    tokens = state.aside.tokens

    def behind(going: Tensor | None, waiting: Tensor | None) -> Tensor | None:
        return None if going is None or waiting is None else torch.cat([going, mean_of(waiting, weights)], dim=1)

    size = state.size
    if size is not None and tokens.size is not None:
        size = torch.cat([size, tokens.size.sum(dim=1, keepdim=True)], dim=1)
    x = behind(state.x, tokens.x)
    assert x is not None
    return replace(state, x=x, size=size, position=behind(state.position, tokens.position))


def take_change(state: State, weights: Tensor) -> tuple[State, Tensor]:
    """Remove the representative; the waiting tokens change as much as it did since it was made of them.

    Returns:
        The state without it, and the new values of the waiting tokens [R, M, D].
    """
    assert state.aside is not None
    tokens = state.aside.tokens.x
    change = state.x[:, -1:] - mean_of(tokens, weights)
    rest = torch.arange(state.x.shape[1] - 1, device=state.x.device).expand(state.x.shape[0], -1)
    return state.gather(rest), tokens + change


def mean_of(x: Tensor, weights: Tensor) -> Tensor:
    """Mean of tokens [R, M, D], weighted by [R, M]: [R, 1, D]."""
    share = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return (share.unsqueeze(1).to(x.dtype) @ x).to(x.dtype)


def _num_aside(state: State) -> int:
    return 0 if state.aside is None else state.aside.tokens.x.shape[1]


class PatchHead:
    """The network's classifier on the mean of all patches, in the place of the class token's answer."""

    def __init__(self, student: Any) -> None:
        self.student = student

    def __call__(self, out: Output, state: State) -> Output:
        """Replace the class logits; a distillation head that timm built in keeps its half in evaluation."""
        model = self.student.model
        logits = model.head(model.head_drop(model.fc_norm(state.mean_patch())))
        if out.distillation_logits is not None and not (self.student.training and self.student.split_heads):
            logits = (logits + out.distillation_logits) / 2
        out.logits = logits
        return out


class ClassHead(nn.Module):
    """A linear classifier on the class token, in training only."""

    def __init__(self, model: Any) -> None:
        """`model` is a timm `VisionTransformer`; nothing of it is kept."""
        super().__init__()
        like: Tensor = model.head.weight
        # Networks that average patches norm after pooling and leave single tokens unnormed: this head brings its own.
        self.norm = copy.deepcopy(model.fc_norm)
        self.fc = nn.Linear(model.embed_dim, model.num_classes, device=like.device, dtype=like.dtype)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, out: Output, state: State) -> dict[str, Tensor]:
        """`class_logits` [R, C]; `state.x` are the normed final tokens."""
        return {"class_logits": self.fc(self.norm(state.prefix(0)))}
