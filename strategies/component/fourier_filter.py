"""Learned filters in the two-dimensional Fourier domain.

Source: Rao et al. 2021, "Global Filter Networks for Image Classification", arXiv:2107.00645, section 3.2.

Shapes: R images, N tokens, P prefix tokens, D width, h·w patch grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.component.patch_grid import to_grid, to_tokens
from strategies.state import State


def fourier_filter(x: Tensor, weight: Tensor) -> Tensor:
    """F⁻¹(K ⊙ F(x)), the transforms orthonormal. Of a real picture's spectrum half the columns say everything.

    Args:
        x: [R, D, h, w], real.
        weight: K [D, h, w // 2 + 1, 2], real and imaginary part, float32.

    Returns:
        [R, D, h, w], float32.
    """
    # Transforms of half precision exist for few sizes, and on some devices.
    spectrum = torch.fft.rfft2(x.float(), norm="ortho") * torch.view_as_complex(weight.contiguous())
    return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


def resampled(weight: Tensor, h: int, w: int) -> Tensor:
    """K for a grid of another size, bilinearly; the same if the size is.

    Args:
        weight: [D, h₀, w₀ // 2 + 1, 2].

    Returns:
        [D, h, w // 2 + 1, 2].
    """
    size = (h, w // 2 + 1)
    if weight.shape[1:3] == size:
        return weight
    picture = weight.permute(3, 0, 1, 2)
    return F.interpolate(picture, size=size, mode="bilinear", align_corners=True).permute(1, 2, 3, 0)


class Filter(nn.Module):
    """The filter of one block, at its attention seam."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(width, grid, grid // 2 + 1, 2))

    def forward(self, attn: Any, x: Tensor, state: State) -> Tensor:
        """Filter the patches of x [R, N, D]; nothing comes out for prefix tokens."""
        P = state.num_prefix_tokens
        picture = to_grid(x[:, P:])
        weight = resampled(self.weight.float(), *picture.shape[-2:])
        y = to_tokens(fourier_filter(picture, weight)).to(x.dtype)
        return torch.cat([torch.zeros_like(x[:, :P]), y], dim=1)
