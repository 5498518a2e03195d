"""A network on pictures of another size: resized, cut into its patches, with position embeddings of their own.

Shapes: R images, g patches along a side, P prefix tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from strategies.backbone import VisionTransformerStudent
from strategies.state import State


def resized(images: Tensor, side: int) -> Tensor:
    """Images [R, channels, ·, ·] at `side` pixels, bilinearly; as they are, if they have that size."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def positions_for(model: Any, grid: int) -> nn.Parameter | None:
    """A position embedding for g×g patches, resampled from the network's own (bicubic); `None` if it has none.

    It is flat, [(P' + g²)·D], as optimisers that spare vectors from weight decay spare position embeddings so. P' are
    the prefix tokens that have positions: all, or none with timm's `no_embed_class`.

    Args:
        model: a timm `VisionTransformer`, whose parameter is only read.
        grid: g.
    """
    if not isinstance(model.pos_embed, nn.Parameter):
        return None
    own = resample_abs_pos_embed(
        model.pos_embed.detach(),
        new_size=[grid, grid],
        old_size=list(model.patch_embed.grid_size),
        num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
    )
    return nn.Parameter(own.flatten().clone())


def embed_at(student: VisionTransformerStudent, images: Tensor, positions: Tensor | None) -> State:
    """What `Student.embed` does, for images of any size: patches, prefix tokens, positions, then the embedding seams.

    Args:
        images: [R, channels, g·patch, g·patch].
        positions: from `positions_for` at g.
    """
    model = student.model
    patches = model.patch_embed.norm(model.patch_embed.proj(images).flatten(2).transpose(1, 2))
    first = (model.cls_token, getattr(model, "dist_token", None), model.reg_token)
    prefix = [token.expand(patches.shape[0], -1, -1) for token in first if token is not None]
    if positions is None:
        x = torch.cat([*prefix, patches], dim=1)
    else:
        own = positions.view(1, -1, patches.shape[-1])
        if model.no_embed_class:
            x = torch.cat([*prefix, patches + own], dim=1)
        else:
            x = torch.cat([*prefix, patches], dim=1) + own
        x = model.pos_drop(x)
    state = State(model.norm_pre(x), model.num_prefix_tokens)
    for seam in student.embedding:
        state = seam(state)
    return state
