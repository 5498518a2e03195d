"""MACs of a Vision Transformer in closed form. Loads no torch: planning asks it too.

Counted are the multiply-accumulates of all matrix products (patch embedding, attention, MLP, classifier), as the
measurement counts them; norms, softmax, activations and additions are not products of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

from strategies.facts import ModelFacts
from strategies.shapes import BlockShape, Shapes

Blocks = Mapping[int, tuple[int, int]]
"""Block → (heads, MLP width)."""


def blocks_of(facts: ModelFacts, shapes: Shapes) -> dict[int, BlockShape]:
    """Widths of every block of a network that was cut to shapes.

    Args:
        facts: at these shapes.
    """
    whole = BlockShape(facts.num_heads, facts.mlp_hidden)
    return {b: shapes.blocks.get(b, whole) for b in range(facts.depth)}


def block_macs(facts: ModelFacts, num_heads: int, mlp_hidden: int) -> int:
    """MACs of one block on one image, all tokens present.

    With N tokens of width D and A = heads · head width: 3NDA for queries, keys and values, 2N²A for scores and their
    product with the values, NAD for the projection, 2NDM for an MLP of width M.
    """
    N, D = facts.num_prefix_tokens + facts.num_patches, facts.embed_dim
    A = num_heads * facts.head_dim
    return 4 * N * D * A + 2 * N * N * A + 2 * N * D * mlp_hidden


def network_macs(facts: ModelFacts, blocks: Blocks) -> int:
    """MACs of the whole network on one image, with what strategies add or save left out.

    Args:
        facts: of a network with family `vit`, plain MLPs, and a patch embedding that is one linear map; at the shapes
            that pruning left, if it was pruned.
        blocks: every block's (heads, MLP width).
    """
    patches = facts.num_patches * facts.patch_size**2 * facts.in_chans * facts.embed_dim
    heads = 2 if facts.has_distillation_token else 1
    inside = sum(block_macs(facts, *blocks[b]) for b in range(facts.depth))
    return patches + inside + heads * facts.embed_dim * facts.num_classes
