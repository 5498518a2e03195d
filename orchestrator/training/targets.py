"""Thresholds of trained networks, found on all validation images by the targets that strategies were given.

Shapes: n images of all workers, A ways out, B images in a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.measurement.compute import Count, counts_of_images
from orchestrator.training.data import Loader
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.precision import Precision
from strategies.api import Strategy
from strategies.backbone import Student
from strategies.dynamic.exit_target import Found, meet
from strategies.ways_out import WaysOut

NUM_COUNTED = 16
"""Images whose costs are counted at each way out. Mostly they cost the same, and the first would do; where tokens are
dropped as the image asks for it, it is their mean."""
log = logging.getLogger(__name__)


@torch.no_grad()
def meet_targets(
    label: str,
    network: Student,
    loader: Loader,
    strategies: Sequence[Strategy[Any]],
    precision: Precision,
    group: WorkerGroup,
) -> dict[str, Found]:
    """Give the network the thresholds that its strategies' targets ask for; every worker the same.

    The network runs as it is evaluated afterwards, in the same precision, and its mode is put back. The first worker
    decides, on the images of all.

    Args:
        label: name of the stage, for the log.
        loader: this worker's share of the validation images.

    Returns:
        Strategy → what was found; empty if no strategy has a target.
    """
    training = network.training
    network.eval()
    found: dict[str, Found] = {}
    for strategy in strategies:
        ways = strategy.ways_out(network)
        if ways is None:
            continue
        group.share_buffers(network)
        for each in strategies:
            each.at(network, 1.0)
        confidence, hits, some = _recorded(ways, loader, precision)
        parts = group.gather((confidence, hits))
        choice: Found | None = None
        if group.is_first:
            confidence, hits = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
            assert hits.shape[1] == loader.num_images, "every validation image counts once"
            choice = meet(ways.target, confidence, hits, _costs(ways, network, some))
        found[strategy.name] = choice = group.gather(choice)[0]
        ways.settle(choice.threshold)
        if not choice.met and group.is_first:
            log.warning(
                "stage `%s`: no threshold meets `%s.%s` %g; the nearest leaves %.3g of the MACs without early exits. "
                "Way out: an earlier exit, or a larger target",
                *(label, strategy.name, choice.option, choice.wanted, choice.expected_macs),
            )
    network.train(training)
    return found


def values_of(found: dict[str, Found]) -> dict[str, float]:
    """As metrics, `<strategy>.<name>`."""
    names = ("threshold", "expected_macs", "kept_accuracy")
    return {f"{strategy}.{name}": getattr(what, name) for strategy, what in found.items() for name in names}


def _recorded(
    ways: WaysOut, loader: Loader, precision: Precision
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Tensor]:
    """Confidences [A − 1, n] and whether the answers are right [A, n], of this worker's images, and some of these."""
    some = torch.empty(0)
    confidence: list[Tensor] = [torch.empty(ways.num - 1, 0)]
    hits: list[Tensor] = [torch.empty(ways.num, 0, dtype=torch.bool)]
    for images, labels in loader:
        with precision.autocast():
            said = ways.answers(images)
        some = some if len(some) else images[:NUM_COUNTED]
        confidence.append(said.confidence.cpu())
        hits.append((said.logits.argmax(dim=2) == labels).cpu())
    return torch.cat(confidence, dim=1).numpy(), torch.cat(hits, dim=1).numpy(), some


def _costs(ways: WaysOut, network: Student, images: Tensor) -> NDArray[np.float64]:
    """MACs of leaving by each way, as shares of those without early exits [A]."""
    with ways.without():
        whole = Count.mean(counts_of_images(network, images)).macs
    costs = []
    for way in range(ways.num):
        with ways.only(way):
            costs.append(Count.mean(counts_of_images(network, images)).macs / whole)
    return np.array(costs)
