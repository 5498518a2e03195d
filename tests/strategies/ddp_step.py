"""One of two processes that train every registered strategy for two steps under DDP; prints JSON.

python tests/strategies/ddp_step.py RENDEZVOUS_FILE RANK
"""

from __future__ import annotations

import copy
import json
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from strategies import registry
from strategies.losses import total_loss
from tests.strategies.toys import images, strategy, student, teacher, together, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7, 1, 5])


def backward(network: Any, acting: list[Any], guide: Any, half: int) -> None:
    rows = slice(4 * half, 4 * half + 4)
    torch.manual_seed(half)  # what a strategy draws depends on the half, as it does on the worker in training
    with torch.no_grad():
        taught = guide(images(8)[rows])
    total_loss(acting, network(images(8)[rows]), taught, LABELS[rows])[0].backward()


def run(name: str, options: Any, rank: int) -> dict[str, Any]:
    acting = together(strategy(name, options))
    network, guide = student(toy(), *acting).train(), teacher(*acting)
    for each in acting:
        each.at(network, 0.5)
    alone = copy.deepcopy(network)
    for half in range(2):
        backward(alone, acting, guide, half)
    parallel = DistributedDataParallel(network)
    backward(parallel, acting, guide, rank)
    pairs = zip(network.parameters(), alone.parameters(), strict=True)
    error = max(float((p.grad - q.grad / 2).abs().max()) for p, q in pairs)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    optimiser.step()
    optimiser.zero_grad()
    backward(parallel, acting, guide, rank)  # fails if a parameter took no part in the first step
    optimiser.step()
    return {"gradient_error": error, "checksum": float(sum(p.double().sum() for p in network.parameters()))}


def main() -> None:
    rendezvous, rank = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    results = {
        f"{name}[{i}]": run(name, options, rank)
        for name in registry.names()
        for i, options in enumerate(registry.load(name).examples)
    }
    print(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
