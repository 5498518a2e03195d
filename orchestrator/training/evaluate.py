"""Accuracy on the validation images, counted exactly over any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from orchestrator.training.data import Loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.precision import Precision
from strategies.api import Strategy
from strategies.backbone import Student


@torch.no_grad()
def evaluate(
    network: Student, loader: Loader, strategies: Sequence[Strategy[Any]], precision: Precision, group: WorkerGroup
) -> dict[str, float]:
    """Evaluate as at the end of the stage (knobs at progress 1), in eval mode; the mode is put back.

    Every image counts once: each worker sees its own share, unpadded, and the counts are added up.

    Returns:
        `val_top1` and `val_top5` in percent (with fewer than five classes, `val_top5` is 100), `val_loss` (mean
        cross-entropy), and `<strategy>.<name>` for what the strategies report, as means over the images.
    """
    training = network.training
    group.share_buffers(network)
    network.eval()
    for strategy in strategies:
        strategy.at(network, 1.0)
    sums: dict[str, float] = {}
    counts = torch.zeros(3, dtype=torch.float64, device=group.device)  # summed loss, top-1 hits, top-5 hits
    images_seen = 0
    for images, labels in loader:
        with precision.autocast():
            out = network(images)
        logits = out.logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        counts += torch.stack([loss.double(), ranked[:, 0].sum().double(), ranked.sum().double()])
        images_seen += len(labels)
        for strategy in strategies:
            for name, value in strategy.measure(out).items():
                key = f"{strategy.name}.{name}"
                sums[key] = sums.get(key, 0.0) + value * len(labels)
    network.train(training)
    loss_sum, top1, top5, total = group.sum([*counts.tolist(), float(images_seen)])
    assert total == loader.num_images, f"{total:g} of {loader.num_images} validation images were counted"
    values = {"val_top1": 100 * top1 / total, "val_top5": 100 * top5 / total, "val_loss": loss_sum / total}
    return values | {name: value / total for name, value in group.sum_by_name(sums).items()}
