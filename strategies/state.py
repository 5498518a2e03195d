"""What flows along the blocks, and what comes out of a network.

Shapes: B images in the batch, R images still computed (R ≤ B), N tokens, P prefix tokens, n patches, D width,
C classes, T tokens of all images together, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Aside:
    """Tokens that sit out some blocks and come back (`strategies/aside.py`)."""

    tokens: State
    """M of them, with everything that belongs to them."""
    place: Tensor
    """Where each token of the whole sequence is in [tokens that go on, tokens aside]: [R, N + M] (int64)."""
    source: Tensor | None = None
    """`State.source` of the whole sequence."""
    until: int | None = None
    """Block before which the loop puts them back; `None` = a seam does, at the latest the loop after the last block."""

    def select(self, rows: Tensor) -> Aside:
        """Those of some images only."""
        source = None if self.source is None else self.source.index_select(0, rows)
        return replace(self, tokens=self.tokens.select(rows), place=self.place.index_select(0, rows), source=source)


@dataclass(frozen=True)
class State:
    """The tokens between two blocks. Seams take one and return one; nothing else passes between blocks.

    Tokens are `dense` (every image has as many) or `packed` (`strategies/ragged.py`: all images' tokens behind one
    another in one row, `lengths` says how many belong to each). What acts on single tokens (norms, MLP) serves both.
    """

    x: Tensor
    """Tokens [R, N, D], prefix tokens first; packed: [1, T, D]."""
    num_prefix_tokens: int
    """Class, distillation and register tokens before the patches."""
    size: Tensor | None = None
    """Patches that each token stands for [R, N, 1]; `None` = one each."""
    proportional_attention: bool = True
    """Whether a token that stands for s patches attracts s times the attention of a single one."""
    source: Tensor | None = None
    """Position in `x` that each token of the unreduced sequence went to [R, P + n]; `None` = its own."""
    image: Tensor | None = None
    """Row in the batch of each image still computed [R] (int64); `None` = all, in order."""
    keep: Tensor | None = None
    """Share of each token that takes part in attention [R, N, 1], 0 to 1: in training, where masks need gradients."""
    position: Tensor | None = None
    """Row and column of each token in the patch grid [R, N, 2], where something needs it; prefix tokens at 0."""
    lengths: Tensor | None = None
    """Tokens of each image [R] (int64) where they are packed; `None` = dense."""
    aside: Aside | None = None
    """Tokens that sit out; `None` = none."""
    attended: Tensor | None = None
    """What the last block's attention put out, before LayerScale and residual [R, N, D]; only where the next block
    reads it (`carry`)."""
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    """What strategies leave for their own later seams and readouts: strategy → [R, …]."""
    answers_only: bool = False
    """Whether this pass hands out nothing but logits: it is one of several (`whole`), and losses look at another."""

    @property
    def num_images(self) -> int:
        """R."""
        return self.x.shape[0] if self.lengths is None else len(self.lengths)

    def with_x(self, x: Tensor) -> State:
        """The same state with other token values (same shape)."""
        return replace(self, x=x)

    def noting(self, strategy: str, note: Tensor) -> State:
        """The same state with this strategy's note [R, …] in the place of its earlier one."""
        return replace(self, notes={**self.notes, strategy: note})

    def starts(self) -> Tensor:
        """Position of each image's first token in the packed row [R]."""
        assert self.lengths is not None, "only packed tokens have starts"
        return self.lengths.cumsum(0) - self.lengths

    def prefix(self, i: int) -> Tensor:
        """Each image's i-th prefix token [R, D]; 0 is the class token where there is one."""
        return self.x[:, i] if self.lengths is None else self.x[0].index_select(0, self.starts() + i)

    def gather(self, index: Tensor) -> State:
        """The tokens at these positions, in this order, with everything that belongs to them. Where tokens are
        dropped, nothing tells any more where each patch went: `source` is given up unless the caller sets it.

        Args:
            index: positions in the dense sequence [R, K] (int64), prefix tokens first.
        """
        assert self.lengths is None, "packed tokens are chosen with `ragged.pack`"
        wide = index.unsqueeze(-1)

        def at(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.gather(1, wide.expand(-1, -1, t.shape[-1]))

        R, N, D = self.x.shape
        first = torch.arange(R, device=index.device).unsqueeze(1) * N
        # Rows of the flattened batch are copied whole, which is faster than an element-wise gather along dimension 1.
        x = self.x.reshape(R * N, D).index_select(0, (index + first).flatten()).view(R, index.shape[1], D)
        size, keep, position, attended = map(at, (self.size, self.keep, self.position, self.attended))
        return replace(self, x=x, size=size, keep=keep, position=position, attended=attended, source=None)

    def select(self, rows: Tensor) -> State:
        """Keep some images: the batch is compacted, so the others cost nothing from here on.

        Args:
            rows: positions in this state's batch, ascending [R'] (int64).
        """
        if len(rows) == self.num_images:
            return self
        image = rows if self.image is None else self.image.index_select(0, rows)
        notes = {strategy: note.index_select(0, rows) for strategy, note in self.notes.items()}
        if self.lengths is not None:
            chosen = torch.zeros(self.num_images, dtype=torch.bool, device=rows.device)
            chosen[rows] = True
            tokens = torch.nonzero(chosen.repeat_interleave(self.lengths)).squeeze(1)
            size, position, attended = (
                None if t is None else t.index_select(1, tokens) for t in (self.size, self.position, self.attended)
            )
            return replace(
                self,
                x=self.x.index_select(1, tokens),
                size=size,
                position=position,
                attended=attended,
                lengths=self.lengths.index_select(0, rows),
                image=image,
                notes=notes,
            )

        def keep(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.index_select(0, rows)

        aside = self.aside
        return replace(
            self,
            x=self.x.index_select(0, rows),
            size=keep(self.size),
            source=keep(self.source),
            keep=keep(self.keep),
            position=keep(self.position),
            attended=keep(self.attended),
            aside=aside and aside.select(rows),
            image=image,
            notes=notes,
        )

    def attention_bias(self) -> Tensor | None:
        """log(size) over the keys [R, 1, 1, N]: proportional attention (arXiv:2210.09461, equation 1)."""
        if self.size is None or not self.proportional_attention:
            return None
        return self.size.log().transpose(1, 2).unsqueeze(1)

    def mean_patch(self) -> Tensor:
        """Mean over the patches [R, D]; merged tokens count as often as the patches they stand for, and masked ones as
        far as they are kept."""
        if self.lengths is not None:
            return self._mean_packed(self.lengths)
        patches = self.x[:, self.num_prefix_tokens :]
        shares = [t[:, self.num_prefix_tokens :].to(patches.dtype) for t in (self.size, self.keep) if t is not None]
        if not shares:
            return patches.mean(dim=1)
        weight = shares[0] if len(shares) == 1 else shares[0] * shares[1]
        return (patches * weight).sum(dim=1) / weight.sum(dim=1)

    def _mean_packed(self, lengths: Tensor) -> Tensor:
        x = self.x[0]
        owner = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)
        place = torch.arange(len(x), device=x.device) - self.starts().index_select(0, owner)
        weight = (place >= self.num_prefix_tokens).to(x.dtype).unsqueeze(1)
        if self.size is not None:
            weight = weight * self.size[0].to(x.dtype)
        total = x.new_zeros(len(lengths), 1).index_add(0, owner, weight)
        return x.new_zeros(len(lengths), x.shape[1]).index_add(0, owner, x * weight) / total

    def full_grid(self) -> Tensor:
        """Tokens at their original places [R, P + n, D]; merged tokens stand at every place they came from."""
        assert self.lengths is None, "strategies that pack tokens hide the taps"
        assert self.aside is None, "what is aside has to come back first"
        if self.source is None:
            return self.x
        return torch.gather(self.x, 1, self.source.unsqueeze(-1).expand(-1, -1, self.x.shape[-1]))


@dataclass
class Output:
    """What a network says of a batch."""

    logits: Tensor
    """[B, C]: what accuracy is taken from. In training, the class head's logits alone."""
    distillation_logits: Tensor | None = None
    """[B, C]: the distillation head's, where there is one."""
    exits: dict[int, Tensor] = field(default_factory=dict)
    """Block → logits [B, C] of the exit after it; in training only."""
    features: dict[int, Tensor] = field(default_factory=dict)
    """Block → tokens after it on the full grid [B, P + n, D] (`vit`), or a feature map [B, D, h, w] (`other`);
    only blocks that are tapped, and only in training (a teacher's always)."""
    projections: dict[int, Tensor] = field(default_factory=dict)
    """Block → queries, keys and values of its attention [3, B, H, N, E]; only where strategies claim them (`QKV`), and
    only in training (a teacher's always)."""
    tokens: Tensor | None = None
    """Tokens after the final norm [B, P + n, D]; only where claimed (`FINAL_TOKENS`), and only in training (a
    teacher's always). A hierarchical network's last feature map, [B, h·w, D]."""
    dense_logits: Tensor | None = None
    """The head's answer to each patch alone [B, n, C]; only where claimed (`DENSE_LOGITS`), and only in training (a
    teacher's always)."""
    keep: Tensor | None = None
    """Share of each token of `tokens` that was kept [B, P + n, 1]; `None` = all of all."""
    readouts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Strategy → what its modules computed inside the forward pass, for its losses (projected features, …)."""
    num_prefix_tokens: int = 0
    """Prefix tokens in `features`."""
    num_tokens: list[float] = field(default_factory=list)
    """Tokens an image has after each block, as a mean over the images that were left; 0 where none was."""
    passed: Tensor | None = None
    """[B] (int64): how many of the blocks in `num_tokens` each image went through. Evaluation only, `None` = all."""
    exit_block: Tensor | None = None
    """[B] (int64): block after which each image left; the last block's index if it went through. Evaluation only,
    `None` without exits."""
    others: tuple[Output, ...] = ()
    """Of a teacher's output: the outputs of the stage's further teachers, in the spec's order."""

    def tokens_an_image(self) -> list[float]:
        """Tokens after each block, as a mean over all images of the batch: those that had left have none."""
        if self.passed is None:
            return self.num_tokens
        blocks = torch.arange(len(self.num_tokens), device=self.passed.device)
        shares: list[float] = (self.passed.unsqueeze(1) > blocks).double().mean(dim=0).tolist()
        return [tokens * share for tokens, share in zip(self.num_tokens, shares, strict=True)]
