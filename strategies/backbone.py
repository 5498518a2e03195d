"""The student: timm's own submodules in one explicit loop, with seams where strategies act.

With no strategies the output equals the timm model's bit for bit, and timm's state-dict keys do not change. State
passes as values (`State`), never through module attributes, and no class is swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from strategies import ragged
from strategies.aside import rejoin
from strategies.attention import NOTHING, Mix, Rotate, attend
from strategies.seams import AttentionSeam, Companion, DepthSeam, HalfSeam, Readout, StateSeam, TokensSeam, WholeSeam
from strategies.shapes import WHOLE
from strategies.state import Output, State

__all__ = ["Output", "State", "Student", "TapStudent", "VisionTransformerStudent"]

EXTRAS = "extras."


class Student(nn.Module):
    """A timm network with what strategies attached to it.

    Attributes:
        model: the timm network.
        extras: strategy → its modules with parameters or buffers.
        taps: blocks whose tokens are handed out in `Output.features`.
        always_tap: hand out what is wanted in evaluation too (teachers).
        wants_tokens, wants_dense: hand out the tokens after the final norm, and the head's answer to each patch.
        readouts, companions: strategy → what else it computes in training, at the end of the pass and beside it.
        shapes: what pruning left of the timm network.
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
        self.wants_tokens = False
        self.wants_dense = False
        self.readouts: dict[str, Readout] = {}
        self.companions: dict[str, Companion] = {}
        self.shapes = WHOLE

    @property
    def handing_out(self) -> bool:
        """Whether this pass hands out more than answers."""
        return self.training or self.always_tap

    @property
    def tapping(self) -> bool:
        """Whether this pass hands out tokens of every image."""
        return self.handing_out and (bool(self.taps) or self.wants_tokens or self.wants_dense)

    def network_state(self) -> dict[str, Tensor]:
        """All weights: the timm network under timm's keys, the rest under `extras.<strategy>.`. Weights that several
        layers share are there once, under the first layer's key."""
        shared = self._shared()
        state = {k: v for k, v in self.model.state_dict().items() if k not in shared}
        state.update({EXTRAS + k: v for k, v in self.extras.state_dict().items()})
        return state

    def load_network_state(self, state: dict[str, Tensor]) -> None:
        """Load what `network_state` gave.

        Raises:
            RuntimeError: if keys or shapes differ; the message names them.
        """
        own = {k: v for k, v in state.items() if not k.startswith(EXTRAS)}
        own.update({k: own[first] for k, first in self._shared().items() if first in own})
        extras = {k.removeprefix(EXTRAS): v for k, v in state.items() if k.startswith(EXTRAS)}
        self.model.load_state_dict(own)
        self.extras.load_state_dict(extras)

    def _shared(self) -> dict[str, str]:
        """Keys of the timm network's parameters that are another key's, → that key."""
        first = {id(p): name for name, p in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {name: first[id(p)] for name, p in every if first[id(p)] != name}

    def read_out(self, out: Output, state: State) -> Output:
        """Hand out the final tokens and run the readouts, as far as this pass should."""
        if state.answers_only:
            return out
        if self.wants_tokens and self.handing_out:
            out.tokens, out.keep = state.full_grid(), state.keep
        if self.training:
            for name, readout in self.readouts.items():
                out.readouts[name] = readout(out, state)
        return out

    def accompany(self, out: Output, images: Tensor) -> Output:
        """Run the companions (training only)."""
        if self.training:
            for name, companion in self.companions.items():
                out.readouts[name] = {**out.readouts.get(name, {}), **companion(images)}
        return out


class VisionTransformerStudent(Student):
    """timm's `VisionTransformer` (plain, LayerScale, qk-norm, average-pool, distilled, registers) with all seams.

    Attributes:
        whole: runs the whole pass instead.
        embedding: after patches and positions.
        positions: block → what tells the tokens before it where they are; acts before `entry`.
        entry: block → before it; the depth of the network → after the last block.
        attention, first_half, tokens, second_half, depth: block → its seams, in the order in which they act.
            `first_half` takes the place of `attention` and `tokens`.
        rotate: block → what turns its queries and keys by position.
        mixing: block → what mixes its heads before and after the softmax.
        carry: blocks that hand what their attention put out to the next block, in `State.attended`.
        looks: block → fields of `Look` that its token seam or the losses read.
        split_heads: in training, report class and distillation logits apart (DeiT) instead of their mean.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.whole: WholeSeam | None = None
        self.embedding: list[StateSeam] = []
        self.positions: dict[int, StateSeam] = {}
        self.entry: dict[int, StateSeam] = {}
        self.attention: dict[int, AttentionSeam] = {}
        self.first_half: dict[int, HalfSeam] = {}
        self.tokens: dict[int, TokensSeam] = {}
        self.second_half: dict[int, HalfSeam] = {}
        self.depth: dict[int, DepthSeam] = {}
        self.rotate: dict[int, Rotate] = {}
        self.mixing: dict[int, Mix] = {}
        self.carry: set[int] = set()
        self.looks: dict[int, frozenset[str]] = {}
        self.heads: list[Callable[[Output, State], Output]] = []
        self.split_heads = False

    def forward(self, images: Tensor) -> Output:
        """Run the network.

        Args:
            images: [B, channels, side, side], normalised.
        """
        out = self.run(self.embed(images)) if self.whole is None else self.whole(self, images)
        return self.accompany(out, images)

    def embed(self, images: Tensor) -> State:
        """Images to the tokens that enter block 0."""
        model = self.model
        embedded = model._pos_embed(model.patch_embed(images))
        state = State(model.norm_pre(model.patch_drop(embedded)), model.num_prefix_tokens)
        del embedded  # no name keeps earlier tokens alive: memory peaks in the first block
        for seam in self.embedding:
            state = seam(state)
        return state

    def run(self, state: State) -> Output:
        """Tokens to answers: all blocks, exits and heads."""
        out = Output(state.x.new_empty(0), num_prefix_tokens=state.num_prefix_tokens)
        left: list[tuple[Tensor, Tensor, int]] = []  # (rows of the batch, their logits, block)
        unanswered: Tensor | None = None  # where nobody is taken out: images that have not left [B] (bool)
        tapping = self.tapping and not state.answers_only
        for i, block in enumerate(self.model.blocks):
            # One call a half, so that what only attention needs (its input, the keys) is freed before the MLP, where
            # a block's memory peaks.
            state = self._first_half(i, block, state, out)
            state = self._second_half(i, block, state)
            out.num_tokens.append(_tokens_an_image(state))
            if tapping and i in self.taps:
                out.features[i] = (state if state.aside is None else rejoin(state)).full_grid()
            if i in self.depth:
                logits, leaves = self.depth[i](state)
                if self.training:
                    out.exits[i] = logits
                elif tapping:
                    # A teacher answers at its exits, but its features are wanted of every image.
                    waiting = torch.ones_like(leaves) if unanswered is None else unanswered
                    leaves, unanswered = leaves & waiting, waiting & ~leaves
                    left.append((torch.nonzero(leaves).squeeze(1), logits[leaves], i))
                else:
                    rows = torch.arange(len(logits), device=logits.device) if state.image is None else state.image
                    left.append((rows[leaves], logits[leaves], i))
                    state = state.select(torch.nonzero(~leaves).squeeze(1))
                    if state.num_images == 0:
                        out.num_tokens += [0.0] * (self.model_depth - 1 - i)
                        break
        if state.aside is not None and state.num_images and self.model_depth not in self.entry:
            state = rejoin(state)
        if self.model_depth in self.entry and state.num_images:
            state = self.entry[self.model_depth](state)
        out = self._head(out, state)
        if unanswered is not None:
            rows = torch.nonzero(unanswered).squeeze(1)
            out.logits, state = out.logits.index_select(0, rows), replace(state, image=rows)
        if not left:
            return out
        out = self._gather_exits(out, state, left)
        if not tapping:
            assert out.exit_block is not None, "images left"
            out.passed = out.exit_block + 1
        return out

    @property
    def model_depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    def _first_half(self, i: int, block: Any, state: State, out: Output) -> State:
        """Attention, then the token seam."""
        if state.aside is not None and state.aside.until == i:
            state = rejoin(state)
        if i in self.positions:
            state = self.positions[i](state)
        if i in self.entry:
            state = self.entry[i](state)
        if i in self.first_half:
            return self.first_half[i](block, state)
        normed = block.norm1(state.x)
        look = NOTHING
        if i in self.attention:
            attended = self.attention[i](block.attn, normed, state)
        else:
            want = self.looks.get(i, frozenset())
            if state.answers_only or not self.handing_out:
                want = want - {"projections"}
            mix, rotate = self.mixing.get(i), self.rotate.get(i)
            attended, look = attend(block.attn, normed, state, rotate=rotate, mix=mix, want=want)
            if look.projections is not None:
                out.projections[i] = look.projections
        x = state.x + ragged.per_image(block.drop_path1, block.ls1(attended), state.lengths)
        state = replace(state, x=x, attended=attended if i in self.carry else None)
        if i not in self.tokens:
            return state
        return self.tokens[i](state, look, self.tapping and not state.answers_only)

    def _second_half(self, i: int, block: Any, state: State) -> State:
        """MLP."""
        if i in self.second_half:
            return self.second_half[i](block, state)
        update = block.ls2(block.mlp(block.norm2(state.x)))
        return state.with_x(state.x + ragged.per_image(block.drop_path2, update, state.lengths))

    def _head(self, out: Output, state: State) -> Output:
        """Final norm, pooling and classifier, all timm's own."""
        model = self.model
        state = state.with_x(model.norm(state.x))
        if hasattr(model, "head_dist"):
            cls, dist = model.head(model.head_drop(state.prefix(0))), model.head_dist(model.head_drop(state.prefix(1)))
            out.distillation_logits = dist
            out.logits = cls if self.training and self.split_heads else (cls + dist) / 2
        elif self._pools_itself(state):
            pooled = state.prefix(0) if model.global_pool == "token" else state.mean_patch()
            out.logits = model.head(model.head_drop(model.fc_norm(pooled)))
        else:
            # Tokens that strategies added stand behind timm's own prefix tokens; timm's head must not see them.
            P, added = model.num_prefix_tokens, state.num_prefix_tokens - model.num_prefix_tokens
            x = torch.cat([state.x[:, :P], state.x[:, P + added :]], dim=1) if added else state.x
            out.logits = model.forward_head(x)
        for head in self.heads:
            out = head(out, state)
        if self.wants_dense and self.handing_out and not state.answers_only:
            patches = state.full_grid()[:, state.num_prefix_tokens :]
            out.dense_logits = model.head(model.head_drop(model.fc_norm(patches)))
        return self.read_out(out, state)

    def _pools_itself(self, state: State) -> bool:
        """Whether tokens are no plain batch any more, so that timm's pooling would be wrong."""
        average = self.model.global_pool == "avg" and not self.model.pool_include_prefix
        if state.lengths is not None:
            assert average or self.model.global_pool == "token", "claims refuse to pack tokens for other pooling"
            return True
        return average and not (state.size is None and state.keep is None)

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


def _tokens_an_image(state: State) -> float:
    if state.lengths is not None:
        return float(state.x.shape[1]) / max(state.num_images, 1)
    return float(state.x.shape[1])


class TapStudent(Student):
    """Any other timm network: logits, and feature maps after its stages."""

    def forward(self, images: Tensor) -> Output:
        """Run the network; `images` is [B, channels, side, side], normalised."""
        blocks = sorted(self.taps) if self.tapping else []
        if blocks:
            final, maps = self.model.forward_intermediates(images, indices=blocks, output_fmt="NCHW")
            out = Output(self.model.forward_head(final), features=dict(zip(blocks, maps, strict=True)))
        elif self.tapping:
            final = self.model.forward_features(images)
            out = Output(self.model.forward_head(final))
        else:
            logits = self.model(images)
            return self.accompany(self.read_out(Output(logits), State(logits.unsqueeze(1), 0)), images)
        tokens = tokens_of(self.model, final)
        if self.wants_dense and self.handing_out:
            out.dense_logits = dense_logits(self.model, final)
        return self.accompany(self.read_out(out, State(tokens, 0)), images)


def tokens_of(model: Any, final: Tensor) -> Tensor:
    """What `forward_features` of a timm network gives, as tokens [B, n, D] without prefix tokens.

    Args:
        final: [B, D, h, w], [B, h, w, D] or [B, P + n, D].
    """
    if final.dim() == 3:
        return final[:, getattr(model, "num_prefix_tokens", 0) :]
    channels_first = final.shape[1] == model.num_features
    return final.flatten(2).transpose(1, 2) if channels_first else final.flatten(1, 2)


def dense_logits(model: Any, final: Tensor) -> Tensor:
    """The network's head on each place of its last features alone [B, n, C].

    Args:
        final: as `tokens_of` takes it.
    """
    tokens = tokens_of(model, final)
    B, n, D = tokens.shape
    alone = tokens.reshape(B * n, 1, D)
    if final.dim() == 4:
        alone = alone.view(B * n, D, 1, 1) if final.shape[1] == model.num_features else alone.view(B * n, 1, 1, D)
    return model.forward_head(alone).view(B, n, -1)
