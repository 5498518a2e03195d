"""Which patches idle in a block, and the token-cut loss.

Source: Xu et al. 2023, "No Token Left Behind: Efficient Vision Transformer via Dynamic Token Idling"
(arXiv:2310.05654), section 3.

Shapes: R images, N tokens, P prefix tokens, D width, A = heads · head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.aside import set_aside
from strategies.attention import Rotate
from strategies.dynamic.selection import choose, num_kept
from strategies.state import Output, State


def class_logits(attn: Any, x: Tensor, state: State, rotate: Rotate | None = None) -> Tensor:
    """Logits of the class token's attention to every token, as a mean over heads, up to a number alike for all tokens.

    Keys are linear in the tokens, so the class token's query is taken to the tokens' space once, instead of every token
    to the keys' space: q · (W_k x_j) = (W_kᵀ q) · x_j. That costs N·D products and not N·D·A. The keys' bias adds the
    same to all tokens. Where keys are normed, turned, or made by something else than one matrix, all are computed.

    Args:
        attn: timm's `Attention`.
        x: normed tokens [R, N, D], the class token first.
        state: where they come from.
        rotate: turns queries and keys by position.

    Returns:
        [R, N].
    """
    if rotate is not None or type(attn.qkv) is not nn.Linear or not isinstance(attn.k_norm, nn.Identity):
        query, key = queries_and_keys(attn, x, state, rotate)
        return ((query[:, :, :1] * attn.scale) @ key.transpose(-2, -1)).mean(dim=1).squeeze(1)
    A, weight, bias = attn.attn_dim, attn.qkv.weight, attn.qkv.bias
    query = F.linear(x[:, 0], weight[:A], None if bias is None else bias[:A])
    query = attn.q_norm(query.unflatten(-1, (attn.num_heads, attn.head_dim))).flatten(1)
    in_token_space = (query @ weight[A : 2 * A]).to(x.dtype)  # [R, D]
    return (x @ in_token_space.unsqueeze(-1)).squeeze(-1) * (attn.scale / attn.num_heads)


def mean_logits(attn: Any, x: Tensor, state: State, rotate: Rotate | None = None) -> Tensor:
    """Logits of attention between all tokens [R, N, N], as a mean over heads, for the loss; arguments as above."""
    query, key = queries_and_keys(attn, x, state, rotate)
    # The sum over heads of products of E numbers is one product of A numbers.
    query, key = (t.transpose(1, 2).flatten(2) for t in (query, key))
    return (query @ key.transpose(1, 2)).float() * (attn.scale / attn.num_heads)


def queries_and_keys(attn: Any, x: Tensor, state: State, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
    """Of all tokens and heads, normed and turned as the block's attention does it, each [R, H, N, E]."""
    heads = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).transpose(1, 3)  # [R, H, 3, N, E]
    query, key = attn.q_norm(heads[:, :, 0]), attn.k_norm(heads[:, :, 1])
    return (query, key) if rotate is None else rotate(query, key, state)


def token_cut(logits: Tensor, working: Tensor) -> Tensor:
    """How much attention crosses between working and idle tokens, and misses the working ones, of each image [R].

        mean_i (Σ_{j ≠ class} |m_i − m_j| W_ij)² + mean_i (m_i − Σ_j m_i m_j W_ij)²,  W = softmax over j of the logits

    Attention to the class token is no crossing: every token may look at it.

    Args:
        logits: mean over heads [R, N, N].
        working: m, 1 for tokens that work and 0 for idle ones [R, N].
    """
    weights = logits.softmax(dim=-1)
    m = working.to(weights.dtype)
    to_working = (weights @ m.unsqueeze(-1)).squeeze(-1)
    # What a token gives to the other side: working ones what misses the working, idle ones what reaches the working,
    # where the class token, which works, does not count.
    crossing = m * (1 - to_working) + (1 - m) * (to_working - weights[:, :, 0] * m[:, :1])
    return (crossing.square() + (m * (1 - to_working)).square()).mean(dim=1)


class Idle:
    """Before a block: the patches that idle in it are set aside; the loop puts them back behind it."""

    def __init__(self, student: Any, name: str, block: int, keep_rate: float, learning: bool) -> None:
        self.student, self.name, self.block = student, name, block
        self.keep_rate, self.learning = keep_rate, learning

    def __call__(self, state: State) -> State:
        """Choose, and in training note what the cut costs."""
        P = state.num_prefix_tokens
        num_patches = state.x.shape[1] - P
        num = num_kept(num_patches, self.keep_rate)
        block = self.student.model.blocks[self.block]
        cut = self.learning and self.student.training
        if num == num_patches and not cut:
            return state
        x, rotate = block.norm1(state.x), self.student.rotate.get(self.block)
        bias = state.attention_bias()
        with torch.no_grad():
            scores = class_logits(block.attn, x.detach(), state, rotate)
            if bias is not None:
                scores = scores + bias[:, 0, 0]
            choice = choose(scores[:, P:], num, P)
        if cut:
            working = torch.zeros(x.shape[:2], device=x.device).scatter(1, choice.going, 1.0)
            logits = mean_logits(block.attn, x, state, rotate)
            cost = token_cut(logits if bias is None else logits + bias[:, 0], working)
            state = state.noting(self.name, state.notes[self.name] + cost if self.name in state.notes else cost)
        return state if num == num_patches else set_aside(state, *choice, until=self.block + 1)


class Cut:
    """The readout: the token-cut loss, as a mean over images and blocks."""

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name, self.num_blocks = name, num_blocks

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`cut`, a scalar."""
        return {"cut": state.notes[self.name].mean() / self.num_blocks}
