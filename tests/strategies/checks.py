"""What tests of several strategies check alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts
from tests.strategies.toys import images, strategy

DEIT = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
"""DeiT-T, S and B: 224 px, 14·14 patches, a class token, 12 blocks, heads 64 wide."""


def deit_with(model: str, name: str, options: Mapping[str, Any]) -> tuple[Student, int]:
    """A DeiT without values, with one strategy; and its width."""
    spec = ModelSpec(model=model)
    facts = facts_of(spec)
    network = compose(build_model(spec, device="meta"), [strategy(name, options)], Facts(facts)).eval()
    return network, facts.embed_dim


def counted_macs(network: Student) -> float | None:
    """MACs of one image of 224 px."""
    return static_macs(network, (3, 224, 224))


def outside_blocks(width: int) -> int:
    """MACs of a DeiT's patch embedding and classifier."""
    return 196 * width * 768 + width * 1000


def plain_block(width: int, num_tokens: int = 197) -> int:
    """MACs of a plain block: projections, scores and weighted values, MLP."""
    return 12 * num_tokens * width**2 + 2 * num_tokens**2 * width


def assert_exports(network: Student) -> None:
    """`torch.export`, with any number of images, gives the same logits."""

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.eval()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x).logits
            return logits

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Logits(), (images(4),), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        expected = network(images(5)).logits
        torch.testing.assert_close(program.module()(images(5)), expected, atol=1e-5, rtol=1e-5)


def assert_images_do_not_mix(network: Student) -> None:
    """A batch gives what its images give alone, to rounding."""
    network.eval()
    with torch.no_grad():
        together = network(images(4)).logits
        alone = torch.cat([network(image).logits for image in images(4).split(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
