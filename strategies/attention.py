"""timm's attention with what strategies need besides its result: biases, masks, packed tokens, and a look inside.

Shapes: R images, N tokens (T if packed, with R = 1), D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies import ragged
from strategies.state import State

Rotate = Callable[[Tensor, Tensor, State], tuple[Tensor, Tensor]]
"""Queries and keys [R, H, N, E] → the same, turned by their tokens' positions."""


class Mix(Protocol):
    """Mixes heads of attention; rows of queries stay apart, so that some can be computed alone."""

    def before(self, logits: Tensor) -> Tensor:
        """Logits [R, H, M, N] of M queries → the same."""
        ...

    def after(self, weights: Tensor) -> Tensor:
        """Attention weights [R, H, M, N] of M queries → the same."""
        ...


EPSILON = 1e-6
"""Of `masked_softmax`, as in arXiv:2106.02034."""


@dataclass(frozen=True)
class Look:
    """What a block's attention hands to the token seam, as far as it is asked to."""

    keys: Tensor | None = None
    """[R, H, N, E], after the key norm."""
    class_attention: Tensor | None = None
    """How the class token attends to every token [R, H, N]; sums to 1 over the tokens."""
    projections: Tensor | None = None
    """Queries, keys and values [3, R, H, N, E]."""


NOTHING = Look()


def attend(
    attn: Any,
    x: Tensor,
    state: State,
    *,
    rotate: Rotate | None = None,
    mix: Mix | None = None,
    want: frozenset[str] = frozenset(),
) -> tuple[Tensor, Look]:
    """Run a timm `Attention`, keeping its q/k norms, gate, inner norm and dropouts, and the fused kernel.

    The class token's row of attention is computed apart, so that the kernel stays fused.

    Args:
        attn: `timm.layers.Attention`, possibly with heads removed.
        x: the normed tokens [R, N, D].
        state: where they come from: sizes, masks, lengths and positions are read from it.
        rotate: turns queries and keys by position.
        mix: mixes heads; for tokens that are not packed.
        want: names of fields of `Look`.

    Returns:
        The attention's output [R, N, D], and what was wanted.
    """
    bias, keep, lengths = state.attention_bias(), state.keep, state.lengths
    if bias is None and keep is None and lengths is None and rotate is None and mix is None and not want:
        return attn(x), NOTHING  # timm's own code path: bit for bit the plain network
    q, k, v = project(attn, x)
    if rotate is not None:
        q, k = rotate(q, k, state)
    dropout = attn.attn_drop.p if attn.training else 0.0
    if lengths is not None:
        assert mix is None, "who mixes heads needs the whole grid"
        y = ragged.attention(q, k, v, lengths, bias, dropout)
    elif keep is None and mix is None and attn.fused_attn:
        mask = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        weights = _weights((q * attn.scale) @ k.transpose(-2, -1), bias, keep, mix)
        y = attn.attn_drop(weights) @ v
    look = NOTHING if not want else _look(q, k, v, attn.scale, bias, keep, mix, want)
    return put_out(attn, y, x), look


def project(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [R, H, N, E] of normed tokens x [R, N, D], after timm's q/k norms."""
    R, N, _ = x.shape
    q, k, v = attn.qkv(x).reshape(R, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def put_out(attn: Any, y: Tensor, x: Tensor) -> Tensor:
    """The last steps of a timm `Attention`: inner norm, gate, projection, dropout.

    Args:
        y: the heads' outputs [R, H, N, E].
        x: the normed tokens that attention started from [R, N, D], for the gate.

    Returns:
        [R, N, D].
    """
    y = attn.norm(y.transpose(1, 2).flatten(2))
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Softmax in which every token sees those that are kept, and itself; differentiable in the mask.

        a_ij = (e_ij · G_ij + ε / N) / (Σ_j e_ij · G_ij + ε),  e_ij = exp(l_ij − max_j l_ij),  G_ij = keep_j, 1 if i = j

    Source: Rao et al. 2021, arXiv:2106.02034, equations 10 and 11; ε as in the authors' description, 1e-6.

    Args:
        logits: [R, H, N, N], or the rows of some tokens: then all of them must be kept.
        keep: [R, N, 1], 0 to 1.

    Returns:
        Attention weights, shaped like `logits`, float32.
    """
    N = logits.shape[-1]
    graph = keep.transpose(1, 2).unsqueeze(1).float()  # [R, 1, 1, N]
    if logits.shape[-2] == N:
        itself = torch.eye(N, device=logits.device)
        graph = graph + (1 - graph) * itself
    logits = logits.float()
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp() * graph
    return (weights + EPSILON / N) / (weights.sum(dim=-1, keepdim=True) + EPSILON)


def _weights(logits: Tensor, bias: Tensor | None, keep: Tensor | None, mix: Mix | None) -> Tensor:
    logits = logits if mix is None else mix.before(logits)
    logits = logits if bias is None else logits + bias
    weights = logits.softmax(dim=-1) if keep is None else masked_softmax(logits, keep).to(logits.dtype)
    return weights if mix is None else mix.after(weights)


def _look(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    bias: Tensor | None,
    keep: Tensor | None,
    mix: Mix | None,
    want: frozenset[str],
) -> Look:
    class_attention = None
    if "class_attention" in want:
        row = (q[:, :, :1] * scale) @ k.transpose(-2, -1)
        class_attention = _weights(row, bias, keep, mix).squeeze(2)
    return Look(
        keys=k if "keys" in want else None,
        class_attention=class_attention,
        projections=torch.stack([q, k, v]) if "projections" in want else None,
    )
