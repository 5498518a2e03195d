"""Inverse transform sampling of tokens, and the half of a block that goes on with the sampled ones only.

Source: Fayyaz et al. 2022, "Adaptive Token Sampling for Efficient Vision Transformers" (arXiv:2111.15667), section 3.

Shapes: R images, T tokens of all images together, n patches of one image, P prefix tokens, m levels, D width, H heads,
E head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from strategies import ragged
from strategies.attention import project, put_out
from strategies.state import State


def significance(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """How much each token contributes to the class token's attention: Σ over heads of A[class, j] · ‖v_j‖.

    Args:
        q, k, v: packed tokens [1, H, T, E], each image's class token first.
        lengths: tokens of each image [R].
        scale: of the logits.
        bias: added to the logits of each key [1, 1, 1, T]; `None` = nothing.

    Returns:
        [R, N] with N the largest of `lengths`, float32, 0 behind the shorter images. Not normalised.
    """
    starts = lengths.cumsum(0) - lengths
    asking = q[0].index_select(1, starts).repeat_interleave(lengths, dim=1, output_size=k.shape[2])
    logits = ((asking * scale) * k[0]).sum(dim=-1, dtype=torch.float32)  # [H, T]
    logits = logits if bias is None else logits + bias[0, 0].float()
    both = torch.cat([logits, v[0].float().norm(dim=-1)]).t().unsqueeze(0)
    padded, real = ragged.pad(both, lengths)  # [R, N, 2H]
    logits, norms = padded.chunk(2, dim=-1)
    weights = logits.masked_fill(~real.unsqueeze(-1), -torch.inf).softmax(dim=1)
    return (weights * norms).sum(dim=-1)


def sample(scores: Tensor, counts: Tensor, num_levels: int) -> Tensor:
    """Which patches are picked when the distribution of scores is inverted at evenly spaced levels.

    With the scores in ascending order s_1 ≤ … ≤ s_n, summing to 1 over the image:

        c_j = s_1 + … + s_j,   ĉ_j = (c_j − c_1) / (c_n − c_1)
        u_i = u + (1 − u) · i / (m − 1),  i = 0 … m − 1,  u the smallest positive ĉ

    Each level picks the patch whose ĉ is nearest, of two equally near ones that with the smaller score. Several levels
    may pick the same patch; it is kept once. A single level is 1, which picks the patch with the largest score.

    Args:
        scores: of the patches [R, n], at least 0, on any scale; what is behind an image's patches is not read.
        counts: patches of each image [R], at least 1.
        num_levels: m, at least 1.

    Returns:
        [R, n] (bool), between 1 and m of each image.
    """
    n = scores.shape[1]
    real = torch.arange(n, device=scores.device) < counts.unsqueeze(1)
    ordered, order = scores.float().masked_fill(~real, torch.inf).sort(dim=1, stable=True)
    cumulative = ordered.masked_fill(~real, 0.0).cumsum(dim=1)
    last = (counts - 1).unsqueeze(1)
    spread = cumulative.gather(1, last) - cumulative[:, :1]
    # Where all scores are the same 0, or there is one patch, nothing spreads: every ĉ is 0.
    cdf = (cumulative - cumulative[:, :1]) / spread.clamp_min(torch.finfo(torch.float32).tiny)
    cdf = cdf.masked_fill(~real, torch.inf)
    start = cdf.masked_fill(cdf <= 0, torch.inf).amin(dim=1, keepdim=True).clamp(max=1.0)
    steps = torch.linspace(0, 1, num_levels, device=scores.device) if num_levels > 1 else start.new_ones(1)
    levels = (start + (1 - start) * steps).clamp(max=1.0)  # [R, m]
    above = torch.minimum(torch.searchsorted(cdf, levels), last)  # the first ĉ that reaches the level
    below = (above - 1).clamp_min(0)
    nearer = levels - cdf.gather(1, below) <= cdf.gather(1, above) - levels
    picked = order.gather(1, torch.where(nearer, below, above))
    return torch.zeros_like(real).scatter(1, picked, True)


class SampledHalf:
    """A block's first half: attention asks for the sampled tokens only, and only these go on.

    Args:
        block: where it stands.
        max_tokens: prefix tokens and levels together.
    """

    def __init__(self, student: Any, block: int, max_tokens: int) -> None:
        self.student, self.block, self.max_tokens = student, block, max_tokens

    def __call__(self, block: Any, state: State) -> State:
        """From dense or packed tokens to packed ones."""
        state = replace(ragged.behind_one_another(state), attended=None)
        lengths, bias, attn = state.lengths, state.attention_bias(), block.attn
        assert lengths is not None, "all tokens are packed"
        normed = block.norm1(state.x)
        q, k, v = project(attn, normed)
        rotate = self.student.rotate.get(self.block)
        if rotate is not None:
            q, k = rotate(q, k, state)
        with torch.no_grad():
            alive = self.choose(significance(q, k, v, lengths, attn.scale, bias), lengths, state.num_prefix_tokens)
        chosen = torch.nonzero(alive[0]).squeeze(1)
        some = ragged.pack(state, alive)
        assert some.lengths is not None, "packing counts tokens"
        dropout = attn.attn_drop.p if attn.training else 0.0
        y = ragged.attention(q.index_select(2, chosen), k, v, some.lengths, bias, dropout, key_lengths=lengths)
        attended = block.ls1(put_out(attn, y, normed.index_select(1, chosen)))
        return some.with_x(some.x + ragged.per_image(block.drop_path1, attended, some.lengths))

    def choose(self, scores: Tensor, lengths: Tensor, num_prefix_tokens: int) -> Tensor:
        """Tokens that go on [1, T] (bool): prefix tokens, and the sampled patches.

        Args:
            scores: of all tokens [R, N], from `significance`.
            lengths: tokens of each image [R].
        """
        P = num_prefix_tokens
        alive = torch.ones_like(scores, dtype=torch.bool)
        alive[:, P:] = sample(scores[:, P:], lengths - P, self.max_tokens - P)
        real = torch.arange(scores.shape[1], device=scores.device) < lengths.unsqueeze(1)
        return alive[real].unsqueeze(0)
