"""Per-image decisions on heads, halves of blocks and patches, and blocks that compute only what was decided.

Source: Meng et al. 2022, "AdaViT: Adaptive Vision Transformers for Efficient Image Recognition" (arXiv:2111.15668).

Shapes: R images, N tokens, P prefix tokens, D width, H heads, E head width, T packed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies import ragged
from strategies.attention import Rotate, attend, masked_softmax, project, put_out
from strategies.dynamic.gumbel import hard_sigmoid
from strategies.state import Output, State

START = 3.0
"""Bias of all policies at the start: a probability of 0.95 to use what they decide on."""


class Decisions(NamedTuple):
    """1 for what is used, 0 for what is not, float32."""

    heads: Tensor
    """[R, H]."""
    layers: Tensor
    """Attention and MLP [R, 2]."""
    tokens: Tensor
    """[R, N]; 1 for prefix tokens."""


class Policies(nn.Module):
    """The policies before one block.

    Args:
        width: D.
        num_heads: heads to decide on; 0 = all are used.
        layers, tokens: whether to decide on halves and patches.
        temperature: of the Gumbel-sigmoid.
        threshold: probability above which something is used in evaluation; 0 = everything is.
    """

    def __init__(
        self, width: int, num_heads: int, *, layers: bool, tokens: bool, temperature: float, threshold: float
    ) -> None:
        super().__init__()
        self.temperature, self.threshold = temperature, threshold
        self.heads = nn.Linear(width, num_heads) if num_heads else None
        self.layers = nn.Linear(width, 2) if layers else None
        self.tokens = nn.Linear(width, 1) if tokens else None
        for policy in (self.heads, self.layers, self.tokens):
            if policy is not None:
                nn.init.trunc_normal_(policy.weight, std=0.02)
                nn.init.constant_(policy.bias, START)

    def forward(self, state: State, num_heads: int) -> Decisions:
        """Decide, from dense tokens.

        Args:
            num_heads: H of this block.
        """
        x, P = state.x, state.num_prefix_tokens
        R, N = x.shape[:2]
        ones = x.new_ones(R, max(num_heads, N, 2), dtype=torch.float32)
        heads = ones[:, :num_heads] if self.heads is None else self.decide(self.heads(x[:, 0]))
        layers = ones[:, :2] if self.layers is None else self.decide(self.layers(x[:, 0]))
        if self.tokens is None:
            return Decisions(heads, layers, ones[:, :N])
        return Decisions(heads, layers, torch.cat([ones[:, :P], self.decide(self.tokens(x[:, P:]).squeeze(-1))], dim=1))

    def decide(self, logits: Tensor) -> Tensor:
        """Drawn in training, else by threshold."""
        if self.training:
            return hard_sigmoid(logits, self.temperature)
        return (logits.float() > math.log(self.threshold / (1 - self.threshold))).float()


class AttentionHalf:
    """A block's first half, after its policies. It notes for the second half which tokens pass that [R, N]."""

    def __init__(self, student: Any, name: str, block: int, policies: Policies) -> None:
        self.student, self.name, self.block, self.policies = student, name, block, policies

    def __call__(self, block: Any, state: State) -> State:
        """Decide, then attend with what is used."""
        rotate: Rotate | None = self.student.rotate.get(self.block)
        state = replace(state, attended=None)
        if not self.student.training and not self.policies.threshold:
            attended, _ = attend(block.attn, block.norm1(state.x), state, rotate=rotate)
            return state.with_x(state.x + block.drop_path1(block.ls1(attended)))
        decisions = self.policies(state, block.attn.num_heads)
        passing = decisions.tokens * decisions.layers[:, 1:]
        if self.student.training or self.student.tapping:
            x = state.x + masked_update(block, state, decisions, rotate)
        else:
            x = packed_attention(block, state, decisions, rotate)
        return self.counting(state, decisions).with_x(x).noting(self.name + ".mlp", passing)

    def counting(self, state: State, decisions: Decisions) -> State:
        """Add up the shares of heads, halves and patches that are used, over blocks [R, 3]."""
        used = (decisions.heads, decisions.layers, decisions.tokens[:, state.num_prefix_tokens :])
        shares = torch.stack([u.mean(dim=1) for u in used], dim=1)
        so_far = state.notes.get(self.name)
        return state.noting(self.name, shares if so_far is None else so_far + shares)


class MlpHalf:
    """A block's second half, for the tokens that the first half noted."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, block: Any, state: State) -> State:
        """Run the MLP on the tokens that pass it."""
        passing = state.notes.get(self.name + ".mlp")
        x = state.x
        if passing is None:
            return state.with_x(x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))
        if passing.requires_grad or block.training:
            update = block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
            return state.with_x(x + passing.unsqueeze(-1).to(x.dtype) * update)
        place = torch.nonzero(passing.flatten()).squeeze(1)
        some = x.reshape(-1, x.shape[-1]).index_select(0, place)
        return state.with_x(put(x, place, some + block.ls2(block.mlp(block.norm2(some)))))


def masked_update(block: Any, state: State, decisions: Decisions, rotate: Rotate | None) -> Tensor:
    """What attention adds to each token [R, N, D], everything computed and the unused multiplied with 0."""
    attn, normed = block.attn, block.norm1(state.x)
    q, k, v = project(attn, normed)
    if rotate is not None:
        q, k = rotate(q, k, state)
    logits, bias = (q * attn.scale) @ k.transpose(-2, -1), state.attention_bias()
    weights = masked_softmax(logits if bias is None else logits + bias, decisions.tokens.unsqueeze(-1)).to(v.dtype)
    y = (attn.attn_drop(weights) @ v) * decisions.heads[:, :, None, None].to(v.dtype)
    used = (decisions.tokens * decisions.layers[:, :1]).unsqueeze(-1).to(normed.dtype)
    return used * block.drop_path1(block.ls1(put_out(attn, y, normed)))


def packed_attention(block: Any, state: State, decisions: Decisions, rotate: Rotate | None) -> Tensor:
    """Tokens after attention [R, N, D], of which only what is used was computed."""
    passes = decisions.layers[:, 0] > 0
    alive = (decisions.tokens > 0) & passes.unsqueeze(1)
    place = torch.nonzero(alive.flatten()).squeeze(1)
    if not len(place):
        return state.x
    packed = ragged.pack(state, alive)
    assert packed.lengths is not None, "packing counts tokens"
    rows = torch.nonzero(passes).squeeze(1)
    packed = replace(packed, lengths=packed.lengths.index_select(0, rows))
    heads = decisions.heads.index_select(0, rows) > 0
    normed = block.norm1(packed.x)
    if bool(heads.all()):
        attended, _ = attend(block.attn, normed, packed, rotate=rotate)
    else:
        attended = put_out(block.attn, attend_with(block.attn, normed, packed, heads, rotate), normed)
    return put(state.x, place, (packed.x + block.ls1(attended))[0])


def attend_with(attn: Any, x: Tensor, state: State, heads: Tensor, rotate: Rotate | None) -> Tensor:
    """Attention of some heads in each image; each pair of an image and a head is a packed sequence of its own.

    Args:
        x: normed packed tokens [1, T, D].
        state: packed, where they come from.
        heads: used ones [R, H] (bool).

    Returns:
        The heads' outputs [1, H, T, E], 0 where a head is unused.
    """
    lengths, bias, H, E = state.lengths, state.attention_bias(), attn.num_heads, attn.head_dim
    assert lengths is not None, "only packed tokens differ from image to image"
    used = heads.repeat_interleave(lengths, dim=0).t()  # [H, T]
    if rotate is not None or type(attn.qkv) is not nn.Linear:
        # Turned and factored projections are made for all heads at once.
        q, k, v = project(attn, x)
        if rotate is not None:
            q, k = rotate(q, k, state)
        return ragged.attention(q, k, v, lengths, bias) * used.unsqueeze(-1).to(v.dtype)
    pairs = torch.nonzero(used.flatten()).squeeze(1)  # head by head
    token = pairs % x.shape[1]
    weight, offset = attn.qkv.weight.view(3, H, E, -1), attn.qkv.bias
    parts = []
    for h, some in enumerate(token.split(used.sum(dim=1).tolist())):
        b = None if offset is None else offset.view(3, H, E)[:, h].flatten()
        parts.append(F.linear(x[0].index_select(0, some), weight[:, h].flatten(0, 1), b))
    q, k, v = torch.cat(parts).unflatten(-1, (3, E)).unbind(1)  # [pairs, E] each
    of_pairs = lengths.expand(H, -1)[heads.t()]
    among = None if bias is None else bias.index_select(3, token)
    q, k, v = (t[None, None] for t in (attn.q_norm(q), attn.k_norm(k), v))
    y = ragged.attention(q, k, v, of_pairs, among)[0, 0]
    return y.new_zeros(H * x.shape[1], E).index_copy_(0, pairs, y).view(1, H, -1, E)


def put(x: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
    """Tokens [T, D] at their places in x [R, N, D], which is overwritten where no gradient needs it."""
    flat = x.reshape(-1, x.shape[-1])
    tokens = tokens.to(flat.dtype)
    after = flat.index_copy(0, place, tokens) if torch.is_grad_enabled() else flat.index_copy_(0, place, tokens)
    return after.view(x.shape)


class Report:
    """A head that changes no answer: in evaluation it hands out which shares each image used."""

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name, self.num_blocks = name, num_blocks

    def __call__(self, out: Output, state: State) -> Output:
        """`used`: shares of heads, halves and patches, means over the deciding blocks [R, 3]."""
        if self.name in state.notes and not torch.is_grad_enabled():
            out.readouts[self.name] = {"used": state.notes[self.name] / self.num_blocks}
        return out


class Usage:
    """The readout: how far the use of heads, halves and patches is from its target.

    |h − target| and |l − target|, (t − target)², of means over images and blocks.
    """

    def __init__(self, name: str, targets: Mapping[str, float | None], num_blocks: int) -> None:
        self.name, self.targets, self.num_blocks = name, dict(targets), num_blocks

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`heads`, `layers`, `tokens`, scalars, as far as they are decided."""
        used = state.notes[self.name].mean(dim=0) / self.num_blocks
        away = {n: u - t for (n, t), u in zip(self.targets.items(), used, strict=True) if t is not None}
        return {name: d.square() if name == "tokens" else d.abs() for name, d in away.items()}
