"""What strategies share that put something in the place of attention. Loads no torch: claims ask it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from strategies.api import (
    ATTENTION,
    CLASS_ATTENTION,
    DENSE,
    GRID,
    KEYS,
    MATRICES,
    MIXING,
    PROJECTIONS,
    ROTATION,
    SHAPES,
    Claim,
    Claims,
    at_blocks,
)


def replacing(blocks: Collection[int], *, grid: bool, turns: bool, weights_gone: bool) -> Claims:
    """Claims of a strategy that replaces the attention of these blocks.

    Args:
        grid: it reads the patches as a picture.
        turns: it turns queries and keys by position, where another strategy says how.
        weights_gone: timm's attention weights leave the network, so that nobody can cut or rewrite them.
    """
    hidden = [KEYS, CLASS_ATTENTION, PROJECTIONS, MIXING]
    hidden += [] if turns else [ROTATION]
    hidden += [SHAPES, MATRICES] if weights_gone else []
    needs: frozenset[Claim] = at_blocks(GRID, blocks) | at_blocks(DENSE, blocks) if grid else frozenset()
    hides = frozenset[Claim]().union(*(at_blocks(what, blocks) for what in hidden))
    return Claims(owns=at_blocks(ATTENTION, blocks), needs=needs, hides=hides)


def remove_attention(block: Any, *, norm: bool = False) -> None:
    """Take timm's attention out of a block, and the norm before it where nothing reads that either. Its weights leave
    the network, its checkpoints and its optimiser."""
    from torch import nn

    block.attn = nn.Identity()
    if norm:
        block.norm1 = nn.Identity()
