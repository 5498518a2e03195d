"""The passes of elastic resolution, which of them a step computes, and their loss.

Shapes: B images, n patches, C classes, Q passes besides the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from strategies.attention import Look
from strategies.backbone import VisionTransformerStudent
from strategies.distillation.logits import soft_distillation
from strategies.dynamic.grids import embed_at, positions_for, resized
from strategies.dynamic.selection import attention_received, choose, drop, num_kept
from strategies.state import Output, State

Point = tuple[int, float]
"""Side of the images in pixels, and share of the patches that goes on at each dropping block."""


class Keep:
    """The token seam of all dropping blocks: the patches with the most class attention go on.

    Attributes:
        rate: share of the patches; set before every pass by the passes that share this seam.
    """

    def __init__(self) -> None:
        self.rate = 1.0

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """Choose and drop."""
        num_patches = state.x.shape[1] - state.num_prefix_tokens
        num = num_kept(num_patches, self.rate)
        if num == num_patches:
            return state
        assert look.class_attention is not None, "`claims` asks for the class token's attention"
        scores = attention_received(look.class_attention, state.num_prefix_tokens)
        return drop(state, choose(scores, num, state.num_prefix_tokens))


class ElasticPasses:
    """The whole pass: in evaluation at one point, in training at several.

    Attributes:
        deployed: point of the evaluation.
        positions: size in pixels → its position embedding.
        keep: the seam that drops patches.
    """

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        keep_rates: Sequence[float],
        deployed: Point,
        positions: nn.ParameterDict,
        keep: Keep,
    ) -> None:
        self.name, self.sizes, self.keep_rates = name, tuple(sizes), tuple(keep_rates)
        self.deployed, self.positions, self.keep = deployed, positions, keep

    def __call__(self, student: VisionTransformerStudent, images: Tensor) -> Output:
        """Run the passes on images [B, channels, side, side] of the largest size."""
        if not student.training:
            return self.run(student, images, self.deployed)
        points = drawn_points(self.sizes, self.keep_rates)
        out = self.run(student, images, (self.sizes[-1], 1.0))
        others = [self.run(student, images, point, answers_only=True).logits for point in points]
        sides = {str(side) for side, _ in points}
        # Every parameter takes part in every step, so that no process waits for another's gradients.
        idle = [embedding.sum() for side, embedding in self.positions.items() if side not in sides]
        out.readouts[self.name] = {
            "others": torch.stack(others) if others else out.logits.new_zeros(0, *out.logits.shape),
            "idle": 0.0 * torch.stack(idle).sum() if idle else out.logits.new_zeros(()),
        }
        return out

    def run(
        self, student: VisionTransformerStudent, images: Tensor, point: Point, answers_only: bool = False
    ) -> Output:
        """One pass at one point."""
        side, self.keep.rate = point
        if side == self.sizes[-1]:
            state = student.embed(images)
        else:
            own = self.positions.get(str(side))
            state = embed_at(student, resized(images, side), own)
        return student.run(replace(state, answers_only=answers_only))


@torch.compiler.disable  # the draw decides which graphs run, so it cannot be part of one
def drawn_points(sizes: Sequence[int], keep_rates: Sequence[float]) -> list[Point]:
    """What a step computes besides the largest size with all patches: up to three points, drawn evenly from torch's
    CPU generator, which the training loop seeds for every step.

        (largest, rate), (size, 1), (size, another rate)   with rates below 1 and sizes below the largest

    Source: Lin et al. 2022, arXiv:2205.11397, as in the authors' code.

    Args:
        sizes: ascending.
        keep_rates: ascending, the last 1.
    """

    def draw(values: Sequence[Any]) -> list[Any]:
        return [values[int(torch.randint(len(values), ()))]] if values else []

    rates, smaller = keep_rates[:-1], sizes[:-1]
    points = [(sizes[-1], rate) for rate in draw(rates)]
    for size in draw(smaller):
        points += [(size, rate) for rate in (1.0, *draw(rates))]
    return points


def size_positions(model: Any, sizes: Sequence[int], patch_size: int) -> nn.ParameterDict:
    """Position embeddings of sizes in pixels; of none, where the network has none."""
    found = {str(size): positions_for(model, size // patch_size) for size in sizes}
    return nn.ParameterDict({size: embedding for size, embedding in found.items() if embedding is not None})


def others_loss(readout: Mapping[str, Tensor], largest: Tensor) -> Tensor:
    """Σ over passes of KL(largest ‖ pass), as a mean over images; the largest's logits are constants.

    Args:
        readout: `others`, logits [Q, B, C]; `idle`, a zero with which unused parameters take part.
        largest: logits [B, C].

    Returns:
        Scalar, float32.
    """
    total = readout["idle"].float()
    for logits in readout["others"]:
        total = total + soft_distillation(logits, largest.detach(), 1.0)
    return total
