"""Toy networks on which every strategy can be tried in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specs.model import ModelSpec
from strategies import registry
from strategies.api import Strategy
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose, ordered, student_of, teacher_of
from strategies.facts import Facts
from strategies.losses import total_loss

torch.set_num_threads(1)  # networks this small only lose time to a second thread

TOY = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "layer_scale": ("vit_tiny_patch16_224", {"init_values": 0.3}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "average_pool": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "average_pool_beside_class_token": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
}


def toy(variant: str = "plain", **args: Any) -> ModelSpec:
    """A ViT with 64 patches, width 48, depth 4, 3 heads, 10 classes."""
    model, own = VARIANTS[variant]
    return ModelSpec(model=model, args={**TOY, **own, **args})


TEACHER = ModelSpec(model="vit_tiny_patch16_224", args={**TOY, "embed_dim": 64, "num_heads": 4})


def facts_for(spec: ModelSpec) -> Facts:
    return Facts(facts_of(spec), facts_of(TEACHER))


def strategy(name: str, options: Mapping[str, Any]) -> Strategy[Any]:
    config = registry.resolver(name).model_validate_json(json.dumps({"name": name, **options}))
    return registry.build(config)


def together(*acting: Strategy[Any]) -> list[Strategy[Any]]:
    """With the strategies that these cannot do without, in the order in which they act."""
    listed = {s.name for s in acting}
    beside = {name: options for s in acting for name, options in s.beside.items() if name not in listed}
    return ordered([*acting, *(strategy(name, options) for name, options in beside.items())])


def student(spec: ModelSpec, *strategies: Strategy[Any], seed: int = 0) -> Student:
    torch.manual_seed(seed)
    network = build_model(spec)
    # timm starts several parameters at 0 or 1 and class tokens near 0; random values let tests see all of them.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return compose(network, strategies, facts_for(spec))


def teacher(*strategies: Strategy[Any], spec: ModelSpec | None = None) -> Student:
    torch.manual_seed(99)
    return teacher_of(student_of(build_model(TEACHER)), strategies, facts_for(spec or toy()))


def images(num: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(num, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def step(network: Student, strategies: list[Strategy[Any]], x: Tensor, target: Tensor, guide: Student) -> Tensor:
    """Forward, losses, backward in training mode; returns the loss."""
    network.train()
    for s in strategies:
        s.at(network, 0.5)
    with torch.no_grad():
        taught = guide(x)
    loss, _ = total_loss(strategies, network(x), taught, target)
    loss.backward()
    return loss
