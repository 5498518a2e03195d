"""The student: timm's own submodules in one explicit loop, with seams where strategies act.

With no strategies the output equals the timm model's bit for bit, and timm's state-dict keys do not change. State
passes as values (`State`), never through module attributes, and no class is swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from strategies.attention import attend
from strategies.state import Output, State

__all__ = ["Output", "State", "Student", "TapStudent", "VisionTransformerStudent"]

EXTRAS = "extras."


class EmbeddingSeam(Protocol):
    """After patches and positions: may add prefix tokens."""

    def __call__(self, state: State) -> State:
        """Return the state that enters block 0."""
        ...


class AttentionSeam(Protocol):
    """In place of one block's attention."""

    def __call__(self, attn: nn.Module, x: Tensor, state: State) -> Tensor:
        """Map the normed tokens [R, N, D] to the attention's output [R, N, D]."""
        ...


class TokensSeam(Protocol):
    """Between attention and MLP of one block: may change which tokens exist."""

    def __call__(self, state: State, keys: Tensor | None, track_source: bool) -> State:
        """`keys` [R, H, N, E] if the strategy claims to need them; keep `state.source` up to date if asked."""
        ...


class DepthSeam(Protocol):
    """After one block: says which images may leave, and with what answer."""

    def __call__(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits [R, C], and which images leave [R] (bool; ignored in training, where all go on)."""
        ...


class Readout(Protocol):
    """At the end of the forward pass, in training: computes what a strategy's losses need from parameters."""

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`state.x` are the normed final tokens."""
        ...


class Student(nn.Module):
    """A timm network with what strategies attached to it.

    Attributes:
        model: the timm network.
        extras: strategy → its modules with parameters or buffers.
        taps: blocks whose tokens are handed out in `Output.features`.
        always_tap: hand them out in evaluation too (teachers).
        shapes: block → (heads, MLP width) where they were pruned.
    """

    if TYPE_CHECKING:
        # Seams are there only on networks that run in the loop; claims refuse the others before `wrap`.
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.extras = nn.ModuleDict()
        self.taps: frozenset[int] = frozenset()
        self.always_tap = False
        self.readouts: dict[str, Readout] = {}
        self.shapes: dict[int, tuple[int, int]] = {}

    @property
    def tapping(self) -> bool:
        """Whether this pass hands out features."""
        return bool(self.taps) and (self.training or self.always_tap)

    def network_state(self) -> dict[str, Tensor]:
        """All weights: the timm network under timm's keys, the rest under `extras.<strategy>.`."""
        state = dict(self.model.state_dict())
        state.update({EXTRAS + k: v for k, v in self.extras.state_dict().items()})
        return state

    def load_network_state(self, state: dict[str, Tensor]) -> None:
        """Load what `network_state` gave.

        Raises:
            RuntimeError: if keys or shapes differ; the message names them.
        """
        own = {k: v for k, v in state.items() if not k.startswith(EXTRAS)}
        extras = {k.removeprefix(EXTRAS): v for k, v in state.items() if k.startswith(EXTRAS)}
        self.model.load_state_dict(own)
        self.extras.load_state_dict(extras)

    def read_out(self, out: Output, state: State) -> Output:
        """Run the readouts (training only)."""
        if self.training:
            for name, readout in self.readouts.items():
                out.readouts[name] = readout(out, state)
        return out


class VisionTransformerStudent(Student):
    """timm's `VisionTransformer` (plain, LayerScale, qk-norm, average-pool, distilled, registers) with all seams.

    Attributes:
        embedding, attention, tokens, depth: the seams, set by strategies through `compose`.
        key_blocks: blocks whose attention hands its keys to the token seam.
        split_heads: in training, report class and distillation logits apart (DeiT) instead of their mean.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.embedding: list[EmbeddingSeam] = []
        self.attention: dict[int, AttentionSeam] = {}
        self.tokens: dict[int, TokensSeam] = {}
        self.depth: dict[int, DepthSeam] = {}
        self.key_blocks: frozenset[int] = frozenset()
        self.heads: list[Callable[[Output, State], Output]] = []
        self.split_heads = False

    def forward(self, images: Tensor) -> Output:
        """Run the network.

        Args:
            images: [B, channels, side, side], normalised.
        """
        model = self.model
        embedded = model._pos_embed(model.patch_embed(images))
        state = State(model.norm_pre(model.patch_drop(embedded)), model.num_prefix_tokens)
        del embedded  # no name keeps earlier tokens alive: memory peaks in the first block
        for seam in self.embedding:
            state = seam(state)
        out = Output(images.new_empty(0), num_prefix_tokens=state.num_prefix_tokens)
        left: list[tuple[Tensor, Tensor, int]] = []  # (rows of the batch, their logits, block)
        unanswered: Tensor | None = None  # where nobody is taken out: images that have not left [B] (bool)
        for i, block in enumerate(model.blocks):
            # Two calls, so that what only attention needs (its input, the keys) is freed before the MLP, where a
            # block's memory peaks.
            state = self._attend(i, block, state)
            state = state.with_x(state.x + block.drop_path2(block.ls2(block.mlp(block.norm2(state.x)))))
            out.num_tokens.append(state.x.shape[1])
            if self.tapping and i in self.taps:
                out.features[i] = state.full_grid()
            if i in self.depth:
                logits, leaves = self.depth[i](state)
                if self.training:
                    out.exits[i] = logits
                elif self.tapping:
                    # A teacher answers at its exits, but its features are wanted of every image.
                    waiting = torch.ones_like(leaves) if unanswered is None else unanswered
                    leaves, unanswered = leaves & waiting, waiting & ~leaves
                    left.append((torch.nonzero(leaves).squeeze(1), logits[leaves], i))
                else:
                    rows = torch.arange(len(logits), device=logits.device) if state.image is None else state.image
                    left.append((rows[leaves], logits[leaves], i))
                    state = state.select(torch.nonzero(~leaves).squeeze(1))
                    if state.x.shape[0] == 0:
                        break
        out = self._head(out, state)
        if unanswered is not None:
            rows = torch.nonzero(unanswered).squeeze(1)
            out.logits, state = out.logits.index_select(0, rows), replace(state, image=rows)
        return self._gather_exits(out, state, left) if left else out

    def _attend(self, i: int, block: Any, state: State) -> State:
        """First half of a block: attention, then the token seam."""
        normed = block.norm1(state.x)
        keys = None
        if i in self.attention:
            attended = self.attention[i](block.attn, normed, state)
        else:
            attended, keys = attend(block.attn, normed, state.attention_bias(), i in self.key_blocks)
        state = state.with_x(state.x + block.drop_path1(block.ls1(attended)))
        return self.tokens[i](state, keys, self.tapping) if i in self.tokens else state

    def _head(self, out: Output, state: State) -> Output:
        """Final norm, pooling and classifier, all timm's own."""
        model = self.model
        added = state.num_prefix_tokens - model.num_prefix_tokens
        state = state.with_x(model.norm(state.x))
        # Tokens that strategies added stand behind timm's own prefix tokens; timm's head must not see them.
        P = model.num_prefix_tokens
        x = torch.cat([state.x[:, :P], state.x[:, P + added :]], dim=1) if added else state.x
        if hasattr(model, "head_dist"):
            cls, dist = model.head(model.head_drop(x[:, 0])), model.head_dist(model.head_drop(x[:, 1]))
            out.distillation_logits = dist
            out.logits = cls if self.training and self.split_heads else (cls + dist) / 2
        elif state.size is not None and model.global_pool == "avg" and not model.pool_include_prefix:
            out.logits = model.head(model.head_drop(model.fc_norm(state.mean_patch())))
        else:
            out.logits = model.forward_head(x)
        for head in self.heads:
            out = head(out, state)
        return self.read_out(out, state)

    def _gather_exits(self, out: Output, state: State, left: list[tuple[Tensor, Tensor, int]]) -> Output:
        """Put the answers of images that left early and of those that stayed back into the batch's order."""
        rest = torch.arange(len(out.logits), device=out.logits.device) if state.image is None else state.image
        parts = [*left, (rest, out.logits, len(self.model.blocks) - 1)]
        rows = torch.cat([r for r, _, _ in parts])
        blocks = torch.cat([torch.full((len(r),), b, device=out.logits.device) for r, _, b in parts])
        order = torch.argsort(rows)
        out.logits = torch.cat([logits for _, logits, _ in parts]).index_select(0, order)
        out.exit_block = blocks.index_select(0, order)
        out.distillation_logits = None  # of the images that stayed only
        return out


class TapStudent(Student):
    """Any other timm network: logits, and feature maps after its stages."""

    def forward(self, images: Tensor) -> Output:
        """Run the network; `images` is [B, channels, side, side], normalised."""
        if not self.tapping:
            logits = self.model(images)
            return self.read_out(Output(logits), State(logits.unsqueeze(1), 0))
        blocks = sorted(self.taps)
        final, maps = self.model.forward_intermediates(images, indices=blocks, output_fmt="NCHW")
        out = Output(self.model.forward_head(final), features=dict(zip(blocks, maps, strict=True)))
        return self.read_out(out, State(final, 0))
