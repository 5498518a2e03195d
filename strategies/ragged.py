"""Token counts that differ from image to image: packed, so that dropped tokens cost nothing.

All images' tokens stand behind one another in one row [1, T, D]. Whatever acts on single tokens runs on the row as it
is; attention runs within each image. Masking would compute every token and throw some away.

Shapes: R images, N tokens, T tokens of all images together, D width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.state import State


def pack(state: State, alive: Tensor) -> State:
    """Leave tokens out, of each image others.

    Args:
        state: dense or packed; without tokens aside and without a soft mask.
        alive: which tokens go on [R, N], packed: [1, T] (bool); all prefix tokens among them.
    """
    assert state.aside is None, "what is aside has to come back first"
    assert state.keep is None, "a soft mask is for training on dense tokens"
    if state.lengths is None:
        lengths = alive.sum(dim=1)
    else:
        owner = torch.arange(len(state.lengths), device=alive.device).repeat_interleave(state.lengths)
        lengths = torch.zeros_like(state.lengths).index_add(0, owner, alive[0].long())
    chosen = torch.nonzero(alive.flatten()).squeeze(1)

    def at(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(-1, t.shape[-1]).index_select(0, chosen).unsqueeze(0)

    x = at(state.x)
    assert x is not None
    size, position, attended = map(at, (state.size, state.position, state.attended))
    return replace(state, x=x, size=size, position=position, attended=attended, source=None, lengths=lengths)


def pad(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Packed tokens as a dense batch, zeros behind the shorter images.

    Args:
        x: [1, T, D].
        lengths: [R].

    Returns:
        [R, N, D] with N the largest length, and which of its tokens are real [R, N] (bool).
    """
    real = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(1)
    padded = x.new_zeros(*real.shape, x.shape[-1])
    padded[real] = x[0]
    return padded, real


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention within each image, by fused kernels, on no padding.

    On a GPU one kernel takes all images (`torch.nested`, jagged layout). On a CPU, and where there is a bias, one call
    takes all images of the same length.

    Args:
        q, k, v: [1, H, T, E].
        lengths: tokens of each image [R].
        bias: added to the logits of each key [1, 1, 1, T]; `None` = nothing.
        dropout: of attention weights.

    Returns:
        [1, H, T, E].
    """
    if q.is_cuda and bias is None:
        return _jagged(q, k, v, lengths, dropout)
    starts = (lengths.cumsum(0) - lengths).tolist()
    by_length: dict[int, list[int]] = {}
    for start, length in zip(starts, lengths.tolist(), strict=True):
        by_length.setdefault(length, []).append(start)
    if len(by_length) == 1:
        return _equal(q, k, v, len(starts), bias, dropout)
    y = torch.empty_like(v)
    for length, firsts in by_length.items():
        if len(firsts) == 1:
            one = slice(firsts[0], firsts[0] + length)
            mask = None if bias is None else bias[..., one].to(q.dtype)
            part = F.scaled_dot_product_attention(
                q[:, :, one], k[:, :, one], v[:, :, one], attn_mask=mask, dropout_p=dropout
            )
            y[:, :, one] = part
        else:
            index = (torch.tensor(firsts).unsqueeze(1) + torch.arange(length)).flatten().to(q.device)
            qi, ki, vi = (t.index_select(2, index) for t in (q, k, v))
            among = None if bias is None else bias.index_select(3, index)
            y[:, :, index] = _equal(qi, ki, vi, len(firsts), among, dropout)
    return y


def _equal(q: Tensor, k: Tensor, v: Tensor, num: int, bias: Tensor | None, dropout: float) -> Tensor:
    """Images of one length, as a dense batch."""
    _, H, T, E = q.shape

    def dense(t: Tensor) -> Tensor:
        return t.view(H, num, T // num, E).transpose(0, 1)

    mask = None if bias is None else bias.view(num, 1, 1, T // num).to(q.dtype)
    y = F.scaled_dot_product_attention(dense(q), dense(k), dense(v), attn_mask=mask, dropout_p=dropout)
    return y.transpose(0, 1).reshape(1, H, T, E)


def _jagged(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, dropout: float) -> Tensor:
    """All images in one kernel."""
    offsets = F.pad(lengths.cumsum(0), (1, 0))

    def jagged(t: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(t[0].transpose(0, 1), offsets).transpose(1, 2)

    y = F.scaled_dot_product_attention(jagged(q), jagged(k), jagged(v), dropout_p=dropout)
    return y.transpose(1, 2).values().transpose(0, 1).unsqueeze(0)
