"""One learned token for each teacher, as a module at the student's seams.

Shapes: B images, N tokens, D width, C classes, K teachers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from strategies.distillation.second_token import SecondToken
from strategies.state import Output, State


class TeacherTokens(nn.Module):
    """Tokens, position embeddings and heads, as DeiT's distillation token has them."""

    def __init__(self, model: Any, num_teachers: int, name: str) -> None:
        """Add to a timm `VisionTransformer`; nothing of it is kept.

        Args:
            num_teachers: K.
            name: the strategy, under which the answers are handed to the losses.
        """
        super().__init__()
        self.tokens = nn.ModuleList(SecondToken(model) for _ in range(num_teachers))
        self.name = name

    def embed(self, state: State) -> State:
        """Insert the tokens behind the prefix tokens that are there: [B, N, D] → [B, N + K, D]."""
        for token in self.tokens:
            state = cast(SecondToken, token).embed(state)
        return state

    def answer(self, out: Output, state: State) -> Output:
        """Classify each token: in training for the losses, in evaluation as part of the mean of all heads [B, C]."""
        # The last prefix tokens: nobody else adds any (the strategy owns the claim), and timm's own are before them.
        first = state.num_prefix_tokens - len(self.tokens)
        answers = [cast(SecondToken, t).classify(state.prefix(first + i)) for i, t in enumerate(self.tokens)]
        if self.training:
            out.readouts[self.name] = {str(i): logits for i, logits in enumerate(answers)}
        else:
            out.logits = torch.stack([out.logits, *answers]).mean(dim=0)
        return out
