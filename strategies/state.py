"""What flows along the blocks, and what comes out of a network.

Shapes: B images in the batch, R images still computed (R ≤ B), N tokens, P prefix tokens, n patches, D width,
C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """The tokens between two blocks. Seams take one and return one; nothing else passes between blocks."""

    x: Tensor
    """Tokens [R, N, D], prefix tokens first."""
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

    def with_x(self, x: Tensor) -> State:
        """The same state with other token values (same shape)."""
        return replace(self, x=x)

    def select(self, rows: Tensor) -> State:
        """Keep some images: the batch is compacted, so the others cost nothing from here on.

        Args:
            rows: positions in this state's batch, ascending [R'] (int64).
        """
        if len(rows) == self.x.shape[0]:
            return self

        def keep(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.index_select(0, rows)

        image = rows if self.image is None else self.image.index_select(0, rows)
        return replace(
            self, x=self.x.index_select(0, rows), size=keep(self.size), source=keep(self.source), image=image
        )

    def attention_bias(self) -> Tensor | None:
        """log(size) over the keys [R, 1, 1, N]: proportional attention (arXiv:2210.09461, equation 1)."""
        if self.size is None or not self.proportional_attention:
            return None
        return self.size.log().transpose(1, 2).unsqueeze(1)

    def mean_patch(self) -> Tensor:
        """Mean over the patches [R, D]; merged tokens count as often as the patches they stand for."""
        patches = self.x[:, self.num_prefix_tokens :]
        if self.size is None:
            return patches.mean(dim=1)
        size = self.size[:, self.num_prefix_tokens :].to(patches.dtype)
        return (patches * size).sum(dim=1) / size.sum(dim=1)

    def full_grid(self) -> Tensor:
        """Tokens at their original places [R, P + n, D]; merged tokens stand at every place they came from."""
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
    readouts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Strategy → what its modules computed inside the forward pass, for its losses (projected features, …)."""
    num_prefix_tokens: int = 0
    """Prefix tokens in `features`."""
    num_tokens: list[int] = field(default_factory=list)
    """Tokens after each block that was run."""
    exit_block: Tensor | None = None
    """[B] (int64): block after which each image left; the last block's index if it went through. Evaluation only,
    `None` without exits."""
