"""A learned token with its own position and classifier, as a module at the student's seams.

Shapes: B images, N tokens, P prefix tokens, D width, C classes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from strategies.state import Output, State


class SecondToken(nn.Module):
    """Token, position embedding and head of the distillation token (DeiT, arXiv:2012.12877, section 4).

    All start as in DeiT: truncated normal with standard deviation 0.02, the head's bias at zero. Token and position
    are vectors [D], so that optimisers which spare vectors from weight decay spare them, as DeiT does.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a timm `VisionTransformer`; nothing of it is kept."""
        super().__init__()
        like: torch.Tensor = model.head.weight
        self.token = nn.Parameter(like.new_empty(model.embed_dim))
        self.position = nn.Parameter(like.new_empty(model.embed_dim))
        self.head = nn.Linear(model.embed_dim, model.num_classes, device=like.device, dtype=like.dtype)
        self.drop = nn.Dropout(model.head_drop.p)
        # Networks that average patches norm after pooling and leave single tokens unnormed: this one brings its own.
        self.norm = copy.deepcopy(model.fc_norm)
        for weight in (self.token, self.position, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            # CLIP-like networks norm all tokens before block 0. The token joins after that: it starts normed.
            self.token.copy_(model.norm_pre(self.token))

    def embed(self, state: State) -> State:
        """Insert the token behind the prefix tokens that are there: [B, N, D] → [B, N + 1, D]."""
        P = state.num_prefix_tokens
        token = (self.token + self.position).to(state.x.dtype).expand(state.x.shape[0], 1, -1)
        x = torch.cat([state.x[:, :P], token, state.x[:, P:]], dim=1)
        return replace(state, x=x, num_prefix_tokens=P + 1)

    def classify(self, token: torch.Tensor) -> torch.Tensor:
        """The token after the network's final norm [B, D] → logits [B, C]."""
        logits: torch.Tensor = self.head(self.drop(self.norm(token)))
        return logits

    def answer(self, out: Output, state: State) -> Output:
        """Classify the token. In evaluation `out.logits` [B, C] becomes the mean of both heads."""
        # The last prefix token: this strategy alone adds one (it owns the claim), behind timm's own.
        out.distillation_logits = self.classify(state.prefix(state.num_prefix_tokens - 1))
        if not self.training:
            out.logits = (out.logits + out.distillation_logits) / 2
        return out
