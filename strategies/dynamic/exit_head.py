"""Exit heads, the losses that train them, and how to look at what they would say.

Shapes: B images, R images still computed, N tokens, P prefix tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.state import State
from strategies.ways_out import Answers, Target


class LinearExit(nn.Module):
    """LayerNorm and a linear layer on the class token, or on the mean patch of networks without one.

    Args:
        threshold: that the spec sets; `None` = training finds one.

    Attributes:
        threshold: 0-d; not saved with the weights, because the spec sets it.
        found: 0-d; the one that training found, 1 without any. It is saved whether or not it is in force, so that
            weights fit whatever sets the threshold.
        in_force: the name of the one that decides.
    """

    threshold: Tensor
    found: Tensor

    def __init__(self, model: Any, threshold: float | None) -> None:
        super().__init__()
        device = next(model.parameters()).device
        self.on_class_token = model.cls_token is not None
        self.norm = nn.LayerNorm(model.embed_dim, device=device)
        self.fc = nn.Linear(model.embed_dim, model.num_classes, device=device)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)
        self.in_force = "found" if threshold is None else "threshold"
        given = torch.tensor(1.0 if threshold is None else threshold, device=device)
        self.register_buffer("threshold", given, persistent=False)
        self.register_buffer("found", torch.ones((), device=device))

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits [R, C], and which images are confident enough to leave [R] (bool)."""
        logits = self.fc(self.summary(state))
        threshold: Tensor = getattr(self, self.in_force)
        return logits, confidence(logits) > threshold

    def summary(self, state: State) -> Tensor:
        """What the classifier reads [R, D]."""
        found: Tensor = self.norm(state.prefix(0) if self.on_class_token else state.mean_patch())
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearExit:
        """Thresholds stay in float32 when the weights are cast: in bfloat16, 0.999 is 1."""
        before = {name: self._buffers[name] for name in ("threshold", "found")}
        super()._apply(fn, recurse)
        for name, exact in before.items():
            moved = self._buffers[name]
            assert exact is not None
            assert moved is not None
            if moved.dtype != exact.dtype:
                self._buffers[name] = exact.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights from before thresholds could be found have none."""
        state_dict.setdefault(prefix + "found", self.found)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ExitWays:
    """The exits of a network as ways out of it, while a threshold that was found is in force.

    Args:
        student: the network, in evaluation mode.
        heads: block → its exit, ascending.
    """

    def __init__(self, student: Any, heads: Mapping[int, LinearExit], target: Target) -> None:
        self.student, self.heads, self.target = student, heads, target
        assert all(head.in_force == "found" for head in heads.values()), "the spec sets no threshold"

    @property
    def num(self) -> int:
        """All exits, and the network's end."""
        return len(self.heads) + 1

    @property
    def threshold(self) -> float:
        """The one found so far."""
        return float(next(iter(self.heads.values())).found)

    def answers(self, images: Tensor) -> Answers:
        """Nobody leaves, and every exit is listened to."""
        said: list[Tensor] = []
        hooks = [
            head.register_forward_hook(lambda _, inputs, output: said.append(output[0])) for head in self.heads.values()
        ]
        try:
            with self.only(len(self.heads)):
                last: Tensor = self.student(images).logits
        finally:
            for hook in hooks:
                hook.remove()
        return Answers(torch.stack([confidence(logits) for logits in said]), torch.stack([*said, last]))

    @contextmanager
    def only(self, way: int) -> Iterator[None]:
        """Confidence always exceeds −1, and never 1."""
        before = self.threshold
        try:
            for i, head in enumerate(self.heads.values()):
                head.found.fill_(-1.0 if i == way else 1.0)
            yield
        finally:
            self.settle(before)

    @contextmanager
    def without(self) -> Iterator[None]:
        """Take the heads off their seams."""
        depth = self.student.depth
        try:
            self.student.depth = {block: seam for block, seam in depth.items() if block not in self.heads}
            yield
        finally:
            self.student.depth = depth

    def settle(self, threshold: float) -> None:
        """The same for all exits."""
        for head in self.heads.values():
            head.found.fill_(threshold)


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability [R] of logits [R, C], in float32; never above 1."""
    return logits.float().softmax(dim=-1).amax(dim=-1).clamp(max=1.0)


def exit_cross_entropy(exits: Mapping[int, Tensor], target: Tensor, depth: int) -> Tensor:
    """Σ over exits of (block + 1) / depth · cross-entropy: the deeper the exit, the more it counts.

    Source: arXiv:2308.00255 weighs exits by their block's number; here scaled so that the final head's weight is 1.

    Args:
        exits: block, counted from 0 → logits [B, C].
        target: class indices [B] or probabilities [B, C].
        depth: blocks of the network.
    """
    return torch.stack([(b + 1) / depth * F.cross_entropy(logits, target) for b, logits in exits.items()]).sum()


def exit_divergence(exits: Mapping[int, Tensor], guide: Tensor, depth: int) -> Tensor:
    """Σ over exits of (block + 1) / depth · KL(guide ‖ exit), as a mean over the batch (`batchmean`).

    Args:
        exits: block, counted from 0 → logits [B, C].
        guide: logits [B, C] that the exits imitate; give them detached.
        depth: blocks of the network.
    """
    wanted = guide.log_softmax(dim=-1)
    divergence = [
        (b + 1) / depth * F.kl_div(logits.log_softmax(dim=-1), wanted, reduction="batchmean", log_target=True)
        for b, logits in exits.items()
    ]
    return torch.stack(divergence).sum()
