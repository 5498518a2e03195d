"""Token counts that differ from image to image: packed, so that dropped tokens cost nothing.

All images' tokens stand behind one another in one row [1, T, D]. Whatever acts on single tokens runs on the row as it
is; attention runs within each image. Masking would compute every token and throw some away.

Shapes: R images, N tokens, T tokens of all images together, D width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def behind_one_another(state: State) -> State:
    """The same tokens packed; nothing is copied where they are dense.

    Args:
        state: dense or packed; without tokens aside and without a soft mask.
    """
    if state.lengths is not None:
        return state
    assert state.aside is None, "what is aside has to come back first"
    assert state.keep is None, "a soft mask is for training on dense tokens"
    R, N, _ = state.x.shape

    def row(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(1, R * N, t.shape[-1])

    size, position, attended = map(row, (state.size, state.position, state.attended))
    return replace(
        state,
        x=state.x.reshape(1, R * N, -1),
        size=size,
        position=position,
        attended=attended,
        source=None,
        lengths=torch.full((R,), N, device=state.x.device),
    )


def per_image(drop: nn.Module, y: Tensor, lengths: Tensor | None) -> Tensor:
    """Stochastic depth, drawn for each image, where tokens may be packed.

    Args:
        drop: timm's `DropPath`, or `nn.Identity`.
        y: [R, N, D], packed: [1, T, D].
        lengths: tokens of each image [R]; `None` = dense.
    """
    if lengths is None or isinstance(drop, nn.Identity) or not drop.training:
        return cast("Tensor", drop(y))
    factor = drop(y.new_ones(len(lengths), 1))
    return y * factor.repeat_interleave(lengths, dim=0, output_size=y.shape[1])


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    *,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """Attention within each image, by fused kernels, on no padding.

    On a GPU one kernel takes all images (`torch.nested`, jagged layout). On a CPU, and where there is a bias, one call
    takes all images of the same length.

    Args:
        q: [1, H, T, E].
        k, v: [1, H, S, E].
        lengths: queries of each image [R], T together.
        bias: added to the logits of each key [1, 1, 1, S]; `None` = nothing.
        dropout: of attention weights.
        key_lengths: keys of each image [R], S together; `None` = as many as queries.

    Returns:
        [1, H, T, E].
    """
    among = lengths if key_lengths is None else key_lengths
    if q.is_cuda and bias is None:
        return _jagged(q, k, v, lengths, among, dropout)
    by_length: dict[tuple[int, int], list[tuple[int, int]]] = {}
    start = key_start = 0
    for length, num_keys in zip(lengths.tolist(), among.tolist(), strict=True):
        by_length.setdefault((length, num_keys), []).append((start, key_start))
        start, key_start = start + length, key_start + num_keys
    if len(by_length) == 1:
        return _equal(q, k, v, len(lengths), bias, dropout)
    y = torch.empty_like(q)
    for (length, num_keys), firsts in by_length.items():
        if len(firsts) == 1:
            one, keys = (slice(f, f + n) for f, n in zip(firsts[0], (length, num_keys), strict=True))
            mask = None if bias is None else bias[..., keys].to(q.dtype)
            y[:, :, one] = F.scaled_dot_product_attention(
                q[:, :, one], k[:, :, keys], v[:, :, keys], attn_mask=mask, dropout_p=dropout
            )
        else:
            index, key_index = (
                (torch.tensor(starts).unsqueeze(1) + torch.arange(n)).flatten().to(q.device)
                for starts, n in zip(zip(*firsts, strict=True), (length, num_keys), strict=True)
            )
            some = None if bias is None else bias.index_select(3, key_index)
            ki, vi = (t.index_select(2, key_index) for t in (k, v))
            y[:, :, index] = _equal(q.index_select(2, index), ki, vi, len(firsts), some, dropout)
    return y


def _equal(q: Tensor, k: Tensor, v: Tensor, num: int, bias: Tensor | None, dropout: float) -> Tensor:
    """Images with the same numbers of queries and of keys, as a dense batch."""

    def dense(t: Tensor) -> Tensor:
        return t[0].unflatten(1, (num, -1)).transpose(0, 1)

    mask = None if bias is None else bias.view(num, 1, 1, -1).to(q.dtype)
    y = F.scaled_dot_product_attention(dense(q), dense(k), dense(v), attn_mask=mask, dropout_p=dropout)
    return y.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _jagged(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, key_lengths: Tensor, dropout: float) -> Tensor:
    """All images in one kernel."""

    def jagged(t: Tensor, offsets: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(t[0].transpose(0, 1), offsets).transpose(1, 2)

    offsets = F.pad(lengths.cumsum(0), (1, 0))
    key_offsets = offsets if key_lengths is lengths else F.pad(key_lengths.cumsum(0), (1, 0))
    keys, values = jagged(k, key_offsets), jagged(v, key_offsets)
    y = F.scaled_dot_product_attention(jagged(q, offsets), keys, values, dropout_p=dropout)
    return y.transpose(1, 2).values().transpose(0, 1).unsqueeze(0)
