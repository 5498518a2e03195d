"""The moving average of weights, shared ones too."""

from __future__ import annotations

import torch

from orchestrator.training.average import WeightAverage
from tests.strategies.toys import strategy, student, toy


def test_every_tensor_moves_once_a_step() -> None:
    network = student(toy(), strategy("weight_sharing", {"group": 2}))
    blocks = network.model.blocks
    assert blocks[0].attn.qkv.weight is blocks[1].attn.qkv.weight
    average = WeightAverage(network, decay=0.9)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    average.update(network)
    averaged = dict(average.module.named_parameters())
    assert averaged.keys() == before.keys()
    for name, p in averaged.items():
        torch.testing.assert_close(p.detach(), before[name] + 0.1, msg=name)
