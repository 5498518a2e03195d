"""Halting scores of tokens: what each token's output is made of, and which tokens are still computed.

Source: Yin et al. 2022, "A-ViT: Adaptive Tokens for Efficient Vision Transformer" (arXiv:2112.07658), section 3.

Shapes: R images, N tokens, P prefix tokens, D width, T tokens of all images that are still computed, L blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strategies import ragged
from strategies.state import Output, State


class Halting(NamedTuple):
    """What one block does to tokens, each shaped like the scores."""

    share: Tensor
    """Of the block's output in the token's own output: its score, the remainder where it halts, 0 after that."""
    total: Tensor
    """Sum of scores, this block's included; unchanged where the token had halted before."""
    going: Tensor
    """Whether the token was still going before this block's score (bool)."""


def halting(score: Tensor, total: Tensor, threshold: float, *, last: bool) -> Halting:
    """Add a block's scores.

    Args:
        score: h_l.
        total: sum of the scores before, c_{l−1}.
        threshold: a token halts where the sum exceeds it.
        last: every token that is still going halts.
    """
    going = total <= threshold
    after = total + score
    halts = torch.ones_like(going) if last else after > threshold
    share = torch.where(going, torch.where(halts, 1 - total, score), torch.zeros_like(score))
    return Halting(share, torch.where(going, after, total), going)


class Halt:
    """Between two blocks, or after the last one: add up scores and outputs, take halted tokens out.

    Its notes: `.out`, the outputs so far [R, N, D] (of the prefix tokens alone where only those are read); `.total`,
    sums of scores [R, N]; packed, `.there`, which tokens are still computed [R, N] (bool); in training, `.ponder` [R]
    and `.scores` [R, L].

    Args:
        last: this is the seam after the last block.
    """

    def __init__(self, student: Any, name: str, gamma: float, beta: float, threshold: float, *, last: bool) -> None:
        self.student, self.name = student, name
        self.gamma, self.beta, self.threshold, self.last = gamma, beta, threshold, last

    def __call__(self, state: State) -> State:
        """Score, and mask or pack."""
        masking = self.student.training or self.student.tapping
        return self.mask(state) if masking else self.pack(state)

    def score(self, x: Tensor) -> Tensor:
        """h of tokens [..., D]: [...], float32."""
        return torch.sigmoid(self.gamma * x[..., 0].float() - self.beta)

    def mask(self, state: State) -> State:
        """All tokens stay; no other token sees the patches that have halted."""
        x, P, notes = state.x, state.num_prefix_tokens, state.notes
        score = self.score(x)
        before = notes.get(self.name + ".total", torch.zeros_like(score))
        share, total, going = halting(score, before, self.threshold, last=self.last)
        out = share.unsqueeze(-1).to(x.dtype) * x
        # A token that goes on counts this block; one that halts here counts its remainder, too.
        halts = going & ((total > self.threshold) | self.last)
        ponder = (going + torch.where(halts, 1 - before, torch.zeros_like(before))).mean(dim=1)
        scores = torch.where(going, score, torch.zeros_like(score)).mean(dim=1, keepdim=True)
        if self.name + ".out" in notes:
            out, ponder = notes[self.name + ".out"] + out, notes[self.name + ".ponder"] + ponder
            scores = torch.cat([notes[self.name + ".scores"], scores], dim=1)
        for what, note in (("out", out), ("total", total), ("ponder", ponder), ("scores", scores)):
            state = state.noting(f"{self.name}.{what}", note)
        if self.last:
            return replace(state, x=out, keep=None)
        seen = total.detach() <= self.threshold
        seen[:, :P] = True
        return replace(state, keep=seen.unsqueeze(-1).to(torch.float32))

    def pack(self, state: State) -> State:
        """Only tokens that go on stay."""
        P, notes, R = state.num_prefix_tokens, state.notes, state.num_images
        class_read = self.student.model.global_pool == "token"
        there, place = None, None
        if state.lengths is not None:
            there = notes[self.name + ".there"]
            place = torch.nonzero(there.flatten()).squeeze(1)  # of each packed token in [R · N]
        score = self.score(state.x).flatten()  # [T]
        known = notes.get(self.name + ".total")
        all_totals = score.new_zeros(R, len(score) // R) if known is None else known
        before = all_totals.flatten() if place is None else all_totals.flatten().index_select(0, place)
        share, total, _ = halting(score, before, self.threshold, last=self.last)
        out = self.add(state, share, place, class_read, all_totals.shape)
        if self.last:
            size = notes.get(self.name + ".size")
            return replace(
                state,
                x=out,
                size=None if class_read else state.size if size is None else size,
                position=None,
                lengths=None,
                source=None,
            )
        totals = total if place is None else all_totals.flatten().index_copy(0, place, total)
        totals = totals.view(all_totals.shape)
        going = totals <= self.threshold
        if class_read:  # nothing is read of an image whose prefix tokens have halted
            going &= going[:, :P].any(dim=1, keepdim=True)
        if P:
            going[:, :P] = True
        else:  # no image is left without a token
            going[:, :1] |= ~going.any(dim=1, keepdim=True)
        if state.lengths is None and state.size is not None and not class_read:
            state = state.noting(self.name + ".size", state.size)
        state = state.noting(self.name + ".out", out).noting(self.name + ".total", totals)
        stays = going if place is None else going.flatten().index_select(0, place).unsqueeze(0)
        if bool(stays.all()):
            return state
        there = going if there is None else there & going
        return ragged.pack(state.noting(self.name + ".there", there), stays)

    def add(self, state: State, share: Tensor, place: Tensor | None, class_read: bool, shape: torch.Size) -> Tensor:
        """Outputs with this block's share: [R, P, D] where the class token is read, else [R, N, D]."""
        P, D = state.num_prefix_tokens, state.x.shape[-1]
        so_far = state.notes.get(self.name + ".out")
        if class_read:
            first = torch.arange(shape[0], device=share.device) * shape[1] if place is None else state.starts()
            prefix = torch.stack([state.prefix(i) for i in range(P)], dim=1)
            shares = share[first.unsqueeze(1) + torch.arange(P, device=share.device)]
            part = shares.unsqueeze(-1).to(prefix.dtype) * prefix
            return part if so_far is None else so_far + part
        part = share.view(state.x.shape[:2]).unsqueeze(2).to(state.x.dtype) * state.x
        if place is None:
            return part if so_far is None else so_far + part
        assert so_far is not None, "tokens are packed after the first scores"
        return so_far.reshape(-1, D).index_add(0, place, part[0]).view(*shape, D)


class Pondered:
    """The readout: ponder loss and prior.

    Args:
        depth_prior: mean of the normal distribution over blocks, counted from 1.
    """

    def __init__(self, name: str, depth_prior: float) -> None:
        self.name, self.depth_prior = name, depth_prior

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`ponder` and `prior`, scalars."""
        scores = state.notes[self.name + ".scores"].mean(dim=0)
        return {
            "ponder": state.notes[self.name + ".ponder"].mean(),
            "prior": prior_divergence(scores, self.depth_prior),
        }


def prior_divergence(scores: Tensor, depth_prior: float) -> Tensor:
    """KL(normal ‖ scores), both as distributions over blocks.

        Σ_l n_l log(n_l / z_l),  z_l = mean score of block l / Σ mean scores,  n_l ∝ exp(−(l − depth_prior)² / 2)

    Args:
        scores: mean halting score of each block [L], the first block's first.
        depth_prior: counted from 1.
    """
    block = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float32)
    normal = (-0.5 * (block - depth_prior).square()).log_softmax(dim=0)
    logs = scores.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    return (normal.exp() * (normal - logs.log_softmax(dim=0))).sum()
