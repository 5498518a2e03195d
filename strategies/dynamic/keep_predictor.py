"""Scores that say which patches to keep, and how they decide in training and in evaluation.

Source: Rao et al. 2021, DynamicViT (arXiv:2106.02034), section 3.2 and 3.3; Kong et al. 2022, SPViT
(arXiv:2112.13890), section 4, for predictors of heads and the package token.

Shapes: R images, N tokens, P prefix tokens, n = N − P patches, D width, H heads, S blocks with a predictor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from strategies.dynamic.gumbel import hard_softmax
from strategies.dynamic.selection import choose, drop, fuse
from strategies.state import Output, State


class KeepPredictor(nn.Module):
    """Log-probabilities that a patch is kept, and that it is left out.

    z = GELU(W LN(x)); z' = [z_1…z_{D/2}, mean over kept patches of z_{D/2+1}…z_D]; three linear layers, log-softmax.

    Args:
        width: D, at least 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.local_width = half
        self.inward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.outward = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)
        )
        self.apply(start)

    def forward(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        """Score patches.

        Args:
            patches: [..., n, D].
            keep: share of each that is still there [..., n, 1]; `None` = all of all.

        Returns:
            log p(keep), log p(leave out): [..., n, 2], float32.
        """
        z = self.inward(patches)
        local, common = z[..., : self.local_width], z[..., self.local_width :]
        if keep is None:
            mean = common.mean(dim=-2, keepdim=True)
        else:
            mean = (common * keep).sum(dim=-2, keepdim=True) / keep.sum(dim=-2, keepdim=True).clamp_min(1e-6)
        both = torch.cat([local, mean.to(local.dtype).expand(*local.shape[:-1], common.shape[-1])], dim=-1)
        return self.outward(both).float().log_softmax(dim=-1)


class HeadwisePredictor(nn.Module):
    """The mean over heads of what one `KeepPredictor` says of their D/H channels each, weighted for every patch by how
    much each head matters: sigmoid(MLP(mean of each head's channels)).

    Args:
        width: D, divisible by the heads.
        num_heads: H.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.predictor = KeepPredictor(width // num_heads)
        inner = max(num_heads // 2, 1)
        self.importance = nn.Sequential(
            nn.Linear(num_heads, inner), nn.GELU(), nn.Linear(inner, num_heads), nn.Sigmoid()
        )
        self.importance.apply(start)

    def forward(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        """Score patches; arguments and result as those of `KeepPredictor`, patches [R, n, D]."""
        heads = patches.unflatten(-1, (self.num_heads, -1))  # [R, n, H, D/H]
        weights = self.importance(heads.mean(dim=-1)).float()  # [R, n, H]
        shares = self.predictor(
            heads.transpose(1, 2), None if keep is None else keep.unsqueeze(1)
        ).exp()  # [R, H, n, 2]
        mean = (shares.transpose(1, 2) * weights.unsqueeze(-1)).sum(dim=2) / weights.sum(dim=2, keepdim=True)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def start(module: nn.Module) -> None:
    """Small weights and no bias, as the authors start their predictors."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class Select:
    """Before one block: decide which patches go on.

    In training the decision is drawn and patches are masked. In evaluation the `num` best are gathered; a network that
    hands out tokens of every patch (a teacher) masks the others instead, which gives the same answers.

    Args:
        predictor: `KeepPredictor` or `HeadwisePredictor`.
        num: patches that go on in evaluation.
        package: the others become one more patch, their mean weighted by their probability to be kept.
    """

    def __init__(self, student: Any, name: str, predictor: nn.Module, num: int, package: bool = False) -> None:
        self.student, self.name, self.predictor = student, name, predictor
        self.num, self.package = num, package

    def __call__(self, state: State) -> State:
        """Score and choose."""
        P = state.num_prefix_tokens
        masking = self.student.training or self.student.tapping
        if not masking and self.num + self.package >= state.x.shape[1] - P:
            return state
        keep = None if state.keep is None else state.keep[:, P:]
        scores = self.predictor(state.x[:, P:], keep)
        if not masking:
            choice = choose(scores[..., 0], self.num, P)
            if not self.package:
                return drop(state, choice)
            out = torch.ones_like(scores[..., 0]).scatter(1, choice.going[:, P:] - P, 0.0)
            return fuse(state, choice, normalised(scores[..., 0].exp() * out), track_source=False)
        before = torch.ones_like(scores[..., :1]) if keep is None else keep
        after = before * (hard_softmax(scores)[..., :1] if self.student.training else self.best(scores, before))
        share = after.flatten(1).sum(dim=1, keepdim=True)
        notes = state.notes.get(self.name)
        state = state.noting(self.name, share if notes is None else torch.cat([notes, share], dim=1))
        masked = replace(state, keep=torch.cat([after.new_ones(len(after), P, 1), after], dim=1))
        return packaged(masked, before - after, scores[..., :1].exp()) if self.package else masked

    def best(self, scores: Tensor, keep: Tensor) -> Tensor:
        """1 for the patches that evaluation keeps [R, n, 1]."""
        if self.num + self.package >= int(keep[0].sum()):
            return torch.ones_like(keep)
        left = scores[..., 0].masked_fill(keep[..., 0] == 0, -torch.inf)
        return torch.zeros_like(left).scatter(1, choose(left, self.num, 0).going, 1.0).unsqueeze(-1)


def normalised(weights: Tensor) -> Tensor:
    """Weights [R, n] divided by their sum."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)


def packaged(state: State, leaving: Tensor, probability: Tensor) -> State:
    """Append the package token: Σ p_j x_j / Σ p_j over the patches that leave now. It is masked where none does.

    Args:
        state: masked tokens [R, N, D].
        leaving: 1 for the patches that leave now [R, n, 1].
        probability: that a patch is kept [R, n, 1].
    """
    P, N = state.num_prefix_tokens, state.x.shape[1]
    assert state.keep is not None, "packages are made of masked patches"
    weights = normalised((leaving * probability).squeeze(-1)).unsqueeze(1)  # [R, 1, n]

    def mean(t: Tensor) -> Tensor:
        return torch.cat([t, weights.to(t.dtype) @ t[:, P:]], dim=1)

    size = state.size
    if size is not None:
        together = (leaving.transpose(1, 2).to(size.dtype) @ size[:, P:]).clamp_min(1.0)
        size = torch.cat([size, together], dim=1)
    any_leaves = (leaving.sum(dim=1, keepdim=True) > 0).to(state.keep.dtype)
    # What left is found at the package from here on, whatever becomes of that.
    own = torch.arange(N, device=leaving.device).expand(len(leaving), -1)
    gone = torch.cat([leaving.new_zeros(len(leaving), P), leaving.squeeze(-1).detach()], dim=1) > 0
    place = torch.where(gone, N, own)
    return replace(
        state,
        x=mean(state.x),
        size=size,
        position=None if state.position is None else mean(state.position),
        keep=torch.cat([state.keep, any_leaves], dim=1),
        source=place if state.source is None else place.gather(1, state.source),
    )


class Kept:
    """The readout: the ratio loss, and which of the grid's patches were kept.

    Args:
        rates: ρ^s of each block.
        num_patches: n of the whole image.
    """

    def __init__(self, name: str, rates: tuple[float, ...], num_patches: int) -> None:
        self.name, self.rates, self.num_patches = name, rates, num_patches

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`ratio`, a scalar, and `keep` [B, P + n, 1]."""
        assert state.keep is not None, "training masks"
        share = state.notes[self.name] / self.num_patches
        ratio = (share - share.new_tensor(self.rates)).square().mean()
        return {"ratio": ratio, "keep": state.with_x(state.keep).full_grid()}


def token_difference(patches: Tensor, hint: Tensor, keep: Tensor) -> Tensor:
    """Mean over kept patches and channels of (patch − hint)².

    Args:
        patches, hint: [B, n, D].
        keep: [B, n, 1]; no gradient flows into it.
    """
    keep = keep.detach().to(torch.float32)
    square = (patches.float() - hint.float()).square().mean(dim=-1, keepdim=True)
    return (square * keep).sum() / keep.sum().clamp_min(1.0)
