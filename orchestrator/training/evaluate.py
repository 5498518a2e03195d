"""Accuracy on the validation images, counted exactly over any number of workers.

Shapes: B images in a batch, C classes, M bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.errors import SlimvitError
from orchestrator.training.data import Loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.outcomes import NUM_BINS, Outcomes
from orchestrator.training.precision import Precision
from strategies.api import Strategy
from strategies.backbone import Student

SMALLEST_BATCH = 64
"""Images of a forward pass without gradients; memory that trains a few images holds so many."""


class AnswersNotFinite(SlimvitError):
    """A network answers some images with logits that are not finite, so that it has no accuracy."""


class Evaluation(NamedTuple):
    """What an evaluation found, the same on every worker."""

    values: dict[str, float]
    """`val_top1`, `val_top5` and `val_ece` in percent (with fewer than five classes, `val_top5` is 100), `val_loss`
    (mean cross-entropy), and `<strategy>.<name>` for what the strategies report, as means over the images."""
    outcomes: Outcomes


@torch.no_grad()
def evaluate(
    label: str,
    network: Student,
    loader: Loader,
    strategies: Sequence[Strategy[Any]],
    precision: Precision,
    group: WorkerGroup,
) -> Evaluation:
    """Evaluate as at the end of the stage (knobs at progress 1), in eval mode; the mode is put back.

    Every image counts once: each worker sees its own share, unpadded, and the counts are added up.

    Args:
        label: name of the stage, for the error message.

    Raises:
        AnswersNotFinite: if any logit of any image is not finite.
    """
    training = network.training
    group.share_buffers(network)
    network.eval()
    for strategy in strategies:
        strategy.at(network, 1.0)
    sums: dict[str, float] = {}
    counter = Counter(len(loader.source.images.classes), group.device)
    for images, labels in loader:
        with precision.autocast():
            out = network(images)
        counter.add(out.logits.float(), labels)
        for strategy in strategies:
            for name, value in strategy.measure(out).items():
                key = f"{strategy.name}.{name}"
                sums[key] = sums.get(key, 0.0) + value * len(labels)
    network.train(training)
    counter.counts = group.sum_tensor(counter.counts)
    total = counter.num_images
    assert total == loader.num_images, f"{total} of {loader.num_images} validation images were counted"
    if counter.num_unanswered:
        raise AnswersNotFinite(
            f"stage `{label}`: the network answers {counter.num_unanswered} of {total} validation images with logits "
            "that are not finite (NaN or infinite), so it has no accuracy, and nothing of it is committed. Lower "
            "`optimizer.lr`, set `clip_grad`, or train in `fp32` or `bf16`."
        )
    outcomes = counter.outcomes(loader.source.images.classes)
    values = {
        "val_top1": outcomes.top1,
        "val_top5": 100 * counter.top5_hits / total,
        "val_loss": counter.loss_sum / total,
        "val_ece": outcomes.ece,
    }
    values |= {name: value / total for name, value in group.sum_by_name(sums).items()}
    return Evaluation(values, outcomes)


class Counter:
    """Counts outcomes on the device, without waiting for it; all counts are one vector, so that workers add up once.

    Attributes:
        counts: confusion matrix [C · C], bins [M · 3], and summed loss, top-5 hits, images whose logits are not
            finite; float64, in which counts are exact.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes**2 + 3 * NUM_BINS + 3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: `logits` [B, C] (float32), `labels` [B] (int64)."""
        C = self.num_classes
        finite = logits.isfinite().all(dim=1)
        logits = logits.masked_fill(~finite[:, None], 0.0)  # counted, so that the sum tells how many there were
        ranked = logits.topk(min(5, C), dim=1).indices
        hit = (ranked[:, 0] == labels).double()
        # In float64 a confidence that is a bin's edge lies on it, and not beside it.
        confidence = logits.double().softmax(dim=1).amax(dim=1)
        bins = C * C + 3 * ((confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1)
        ones = torch.ones_like(confidence)
        self.counts.index_add_(0, labels * C + ranked[:, 0], ones)
        for offset, values in enumerate((ones, hit, confidence)):
            self.counts.index_add_(0, bins + offset, values)
        self.counts[-3] += F.cross_entropy(logits, labels, reduction="sum").double()
        self.counts[-2] += (ranked == labels[:, None]).sum()
        self.counts[-1] += (~finite).sum()

    @property
    def num_images(self) -> int:
        """Images counted."""
        return round(float(self.counts[: self.num_classes**2].sum()))

    @property
    def loss_sum(self) -> float:
        """Cross-entropy, summed over the images."""
        return float(self.counts[-3])

    @property
    def top5_hits(self) -> int:
        """Images whose label is among the first five predictions."""
        return round(float(self.counts[-2]))

    @property
    def num_unanswered(self) -> int:
        """Images whose logits are not finite."""
        return round(float(self.counts[-1]))

    def outcomes(self, classes: tuple[str, ...]) -> Outcomes:
        """Confusion matrix and bins, on the CPU."""
        counts, C = self.counts.cpu().numpy(), self.num_classes
        confusion = counts[: C * C].reshape(C, C).astype(np.int64)
        return Outcomes(classes, confusion, counts[C * C : -3].reshape(NUM_BINS, 3).copy())
