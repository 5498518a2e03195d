"""The two passes of coarse to fine, and what goes from the first to the second.

Shapes: B images, R images that take the fine pass, g coarse and f fine patches along a side, s = f / g, K coarse
patches that are refined, M = g² − K that are not, P prefix tokens, D width, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from strategies.attention import Look
from strategies.backbone import VisionTransformerStudent
from strategies.dynamic.exit_head import confidence
from strategies.dynamic.grids import embed_at, positions_for, resized
from strategies.dynamic.selection import attention_received, num_kept
from strategies.state import Output, State

MEMORY = 0.99
"""β of arXiv:2203.03821, equation 4: how much of the averaged attention stays from block to block."""


class CoarsePass(nn.Module):
    """What the coarse pass has of its own.

    Attributes:
        grid: g.
        positions: flat, or `None` where the network has no position embedding.
        reuse: LayerNorm and MLP on coarse tokens; `None` if nothing of them is reused.
    """

    def __init__(self, model: Any, grid: int, *, reuse: bool) -> None:
        super().__init__()
        self.grid = grid
        self.positions = positions_for(model, grid)
        self.reuse: nn.Sequential | None = None
        if reuse:
            width, like = model.embed_dim, next(model.parameters())
            mlp = Mlp(width, 4 * width)
            for layer in (mlp.fc1, mlp.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            self.reuse = nn.Sequential(nn.LayerNorm(width, eps=1e-6), mlp).to(like.device, like.dtype)


class Watch:
    """A token seam that averages the class token's attention and changes nothing; only in passes that ask for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """Ā ← β·Ā + (1 − β)·A in the note [R, g²]."""
        if self.name not in state.notes:
            return state
        assert look.class_attention is not None, "`claims` asks for the class token's attention"
        new = attention_received(look.class_attention.detach(), state.num_prefix_tokens)
        return state.noting(self.name, MEMORY * state.notes[self.name] + (1 - MEMORY) * new)


class HandOver:
    """A head that changes no answer: it hands the coarse pass's normed tokens and averaged attention on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, out: Output, state: State) -> Output:
        """Only in passes that average attention, which are the coarse ones."""
        if self.name in state.notes:
            patches = state.x[:, state.num_prefix_tokens :]
            out.readouts[self.name] = {"patches": patches, "attention": state.notes[self.name]}
        return out


class Refine:
    """The whole pass: coarse, then fine for the images that are not done.

    Attributes:
        coarse: the modules of the coarse pass.
        fine: f.
        side: pixels of the images.
        alpha: share of the coarse patches that are refined now.
        threshold: confidence with which an image is done; 1 = none is.
    """

    def __init__(self, name: str, coarse: CoarsePass, fine: int, side: int, alpha: float, threshold: float) -> None:
        self.name, self.coarse, self.fine, self.side = name, coarse, fine, side
        self.alpha, self.threshold = alpha, threshold

    def __call__(self, student: VisionTransformerStudent, images: Tensor) -> Output:
        """Run both passes on images [B, channels, side, side]."""
        looked_at = student.training or self.threshold < 1 or self.alpha < 1 or self.coarse.reuse is not None
        if not looked_at:
            return student.run(student.embed(images))
        embedded = embed_at(student, resized(images, self.side * self.coarse.grid // self.fine), self.coarse.positions)
        blank = embedded.x.new_zeros(images.shape[0], self.coarse.grid**2, dtype=torch.float32)
        first = student.run(replace(embedded, answers_only=True).noting(self.name, blank))
        found = first.readouts.get(self.name, {})
        if student.training:
            out = student.run(self.refined(student, images, embedded, found))
            out.readouts[self.name] = {"coarse_logits": first.logits}
            return out
        if self.threshold == 1:
            out = student.run(self.refined(student, images, embedded, found))
            out.num_tokens = first.num_tokens + out.num_tokens
            return out
        done = confidence(first.logits) >= self.threshold
        going = torch.nonzero(~done).squeeze(1)
        if student.tapping:  # a teacher answers as it would, but its features are wanted of every image
            out = student.run(self.refined(student, images, embedded, found))
            out.logits = torch.where(done.unsqueeze(1), first.logits, out.logits)
        elif going.shape[0] == 0:
            out = first
            out.num_tokens = first.num_tokens + [0.0] * len(first.num_tokens)
            out.passed = torch.full_like(done, student.model_depth, dtype=torch.int64)
        else:
            found = {name: tensor.index_select(0, going) for name, tensor in found.items()}
            unclear = images.index_select(0, going)
            out = student.run(self.refined(student, unclear, embedded.select(going), found))
            out.logits = first.logits.index_copy(0, going, out.logits.to(first.logits.dtype))
            out.num_tokens = first.num_tokens + out.num_tokens
            out.passed = student.model_depth * (2 - done.long())
        out.distillation_logits = None  # of the images that took the fine pass only
        out.readouts = {self.name: {"done": done}}
        return out

    def refined(
        self, student: VisionTransformerStudent, images: Tensor, coarse: State, found: dict[str, Tensor]
    ) -> State:
        """What enters the fine pass: prefix tokens, the chosen patches' children by place, the other patches.

        Args:
            images: [R, channels, side, side].
            coarse: their coarse tokens as they were embedded [R, P + g², D].
            found: `patches` [R, g², D] and `attention` [R, g²] of the coarse pass; empty if nothing looks at them.
        """
        state = student.embed(images)
        P, g, f = state.num_prefix_tokens, self.coarse.grid, self.fine
        num = num_kept(g * g, self.alpha)
        if num == g * g:
            every = torch.arange(num, device=images.device).expand(images.shape[0], -1)
            return state.with_x(self.with_reuse(state.x, every, children_of(every, g, f).parent, found))
        order = found["attention"].argsort(dim=1, descending=True, stable=True)
        chosen, waiting = order[:, :num], order[:, num:].sort(dim=1).values
        index, parent = children_of(chosen, g, f)
        prefix = torch.arange(P, device=index.device).expand(index.shape[0], -1)
        children = state.gather(torch.cat([prefix, index + P], dim=1))
        detailed = self.with_reuse(children.x, chosen, parent, found)
        x = torch.cat([detailed, coarse.gather(waiting + P).x], dim=1)
        size = torch.ones_like(x[:, :, :1])
        size[:, detailed.shape[1] :] = (f // g) ** 2
        source = places(index, waiting, P, g, f) if student.tapping else None
        return replace(children, x=x, size=size, proportional_attention=False, source=source)

    def with_reuse(self, x: Tensor, chosen: Tensor, parent: Tensor, found: dict[str, Tensor]) -> Tensor:
        """Add MLP(LN(parent)) to children: section 3.3 of arXiv:2203.03821, for the chosen parents alone.

        Args:
            x: prefix tokens and children [R, P + K·s², D].
            chosen: parents [R, K].
            parent: each child's place in `chosen` [R, K·s²].
            found: `patches` of the coarse pass [R, g², D].
        """
        if self.coarse.reuse is None:
            return x

        def at(tokens: Tensor, index: Tensor) -> Tensor:
            return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

        again = at(self.coarse.reuse(at(found["patches"], chosen)), parent)
        P = x.shape[1] - again.shape[1]
        return torch.cat([x[:, :P], x[:, P:] + again], dim=1)


class Children(NamedTuple):
    """Where the children of chosen patches are."""

    place: Tensor
    """Places in the fine grid, ascending [R, K·s²]."""
    parent: Tensor
    """Each child's place among the chosen [R, K·s²]."""


def children_of(chosen: Tensor, coarse: int, fine: int) -> Children:
    """The s×s fine patches that cover each chosen coarse patch.

    Args:
        chosen: places in the coarse grid, row by row [R, K] (int64).
        coarse, fine: patches along a side, g and f.
    """
    s = fine // coarse
    inside = torch.arange(s, device=chosen.device)
    row = (chosen.div(coarse, rounding_mode="floor") * s)[:, :, None, None] + inside[:, None]
    column = (chosen.remainder(coarse) * s)[:, :, None, None] + inside
    index, order = (row * fine + column).flatten(1).sort(dim=1)
    return Children(index, order.div(s * s, rounding_mode="floor"))


def places(index: Tensor, waiting: Tensor, num_prefix_tokens: int, coarse: int, fine: int) -> Tensor:
    """Where each token of the whole fine sequence is in the mixture: [R, P + f²].

    Args:
        index: fine patches in the mixture, in their order [R, K·s²].
        waiting: coarse patches behind them [R, M]; each stands at the places of all its children.
        num_prefix_tokens: P.
        coarse, fine: g and f.
    """
    (R, F), P = index.shape, num_prefix_tokens
    covered, whose = children_of(waiting, coarse, fine)
    going = torch.arange(P, P + F, device=index.device).expand(R, -1)
    place = torch.empty(R, fine * fine, dtype=torch.int64, device=index.device)
    place = place.scatter(1, index, going).scatter(1, covered, P + F + whose)
    return torch.cat([torch.arange(P, device=index.device).expand(R, -1), place], dim=1)
