"""Compare how the patches of two networks lie to one another, whatever their widths.

Shapes: B images, n patches, D width (each network its own), K samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_distances(ours: Tensor, theirs: Tensor, num_samples: int) -> dict[str, Tensor]:
    """Mean squared differences of Gram matrices of patches that are scaled to length 1.

    Source: Hao et al. 2022, arXiv:2107.01378, the decoupled manifold loss. A Gram matrix holds the cosines between
    patches, so both networks' are of one size. Three parts replace the one over all B·n patches, which would not fit
    into memory.

    Args:
        ours: the student's patches [B, n, D].
        theirs: the teacher's [B, n, D'], on the same grid.
        num_samples: K, patches drawn from all images without replacement, with torch's global generator; all of them
            where there are fewer.

    Returns:
        `intra`: over the n·n pairs of an image, averaged over images. `inter`: over the B·B pairs at one place of the
        grid, averaged over places. `random`: over the K·K pairs of the drawn patches. Scalars, float32.
    """
    ours, theirs = (F.normalize(x.float(), dim=-1) for x in (ours, theirs))
    drawn = torch.randperm(ours.shape[0] * ours.shape[1], device=ours.device)[:num_samples]
    ways = {
        "intra": (ours, theirs),
        "inter": (ours.transpose(0, 1), theirs.transpose(0, 1)),
        "random": (ours.flatten(0, 1)[drawn], theirs.flatten(0, 1)[drawn]),
    }
    return {name: F.mse_loss(a @ a.mT, b @ b.mT) for name, (a, b) in ways.items()}
