"""The linear layers of a block, by what they are for. Loads no torch: claims ask it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal

from strategies.api import MATRICES, MLP_MATRICES, Claim, at_blocks
from strategies.cost import blocks_of
from strategies.facts import Facts

Part = Literal["qkv", "proj", "mlp"]
PARTS: tuple[Part, ...] = ("qkv", "proj", "mlp")


def matrix_claims(what: Collection[str], blocks: Iterable[int]) -> frozenset[Claim]:
    """The form of these layers' weights in these blocks."""
    blocks = tuple(blocks)
    attention = at_blocks(MATRICES, blocks) if {"qkv", "proj"} & set(what) else frozenset()
    return attention | (at_blocks(MLP_MATRICES, blocks) if "mlp" in what else frozenset())


def names_of(block: Any, what: Collection[str]) -> list[str]:
    """Names of these linear layers within a timm block, in the order in which they act.

    `qkv` and `proj` are attention's; `mlp` stands for all linear layers of the MLP (two, or three where it is gated).
    """
    from torch import nn

    from strategies.factors import Factored

    names = [f"attn.{part}" for part in ("qkv", "proj") if part in what]
    if "mlp" in what:
        inside = [n for n, m in block.mlp.named_modules() if isinstance(m, Factored)]
        names += [
            f"mlp.{name}"
            for name, module in block.mlp.named_modules()
            if isinstance(module, (nn.Linear, Factored)) and not any(name.startswith(f"{f}.") for f in inside)
        ]
    return names


def sizes_of(facts: Facts, block: int, what: Collection[str]) -> list[tuple[str, int, int]]:
    """Layers of a block as (name, inputs, outputs), if the MLP is a plain one. Pruning's choices are as planned.

    Args:
        facts: of the network.
        block: counted among those that are left.
    """
    network = facts.student
    heads, hidden = blocks_of(network, facts.shapes)[block]
    D, A = network.embed_dim, heads * network.head_dim
    sizes = []
    if "qkv" in what:
        sizes.append(("attn.qkv", D, 3 * A))
    if "proj" in what:
        sizes.append(("attn.proj", A, D))
    if "mlp" in what:
        sizes += [("mlp.fc1", D, hidden), ("mlp.fc2", hidden, D)]
    return sizes
