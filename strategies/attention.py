"""timm's attention with what strategies need besides its result: a bias on the logits, and the keys.

Shapes: B batch, N tokens, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def attend(attn: Any, x: Tensor, bias: Tensor | None, want_keys: bool) -> tuple[Tensor, Tensor | None]:
    """Run a timm `Attention`, keeping its q/k norms, gate, inner norm and dropouts, and the fused kernel.

    Args:
        attn: `timm.layers.Attention`, possibly with heads removed.
        x: [B, N, D].
        bias: added to the attention logits, broadcastable to [B, H, N, N]; `None` = nothing.
        want_keys: whether to return the keys.

    Returns:
        The attention's output [B, N, D], and the keys [B, H, N, E] after the key norm (or `None`).
    """
    if bias is None and not want_keys:
        return attn(x), None  # timm's own code path: bit for bit the plain network
    B, N, _ = x.shape
    gate = attn.gate(x).sigmoid() if getattr(attn, "gate", None) is not None else None
    q, k, v = attn.qkv(x).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    if attn.fused_attn:
        mask = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        logits = (q * attn.scale) @ k.transpose(-2, -1)
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        y = attn.attn_drop(weights) @ v
    y = attn.norm(y.transpose(1, 2).reshape(B, N, attn.attn_dim))
    if gate is not None:
        y = y * gate
    return attn.proj_drop(attn.proj(y)), (k if want_keys else None)
