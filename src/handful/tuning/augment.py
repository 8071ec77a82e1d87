"""Another view of labelled slices: moved and relit as another scan of the same body might be."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def augmented(
    slices: Float[Tensor, "n c h w"],
    masks: Float[Tensor, "n k h w"],
    known: Bool[Tensor, "n h w"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"], Bool[Tensor, "n h w"]]:
    """Slices turned by ±15°, scaled by .8 to 1.2, shifted by ±10 %, gamma .7 to 1.5, a little noise; never flipped."""
    n, _, h, w = slices.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, scale = uniform(-math.pi / 12, math.pi / 12), uniform(0.8, 1.2)
    sine, cosine = angle.sin() / scale, angle.cos() / scale
    across, down = uniform(-0.2, 0.2), uniform(-0.2, 0.2)  # affine_grid's frame is 2 wide
    grid = F.affine_grid(
        torch.stack(
            [
                torch.stack([cosine, -sine * h / w, across], dim=1),
                torch.stack([sine * w / h, cosine, down], dim=1),
            ],
            dim=1,
        ),
        [n, 1, h, w],
        align_corners=False,
    )
    gamma = torch.exp(uniform(math.log(0.7), math.log(1.5)))[:, None, None, None]
    noise = uniform(0, 0.05)[:, None, None, None] * torch.randn(slices.shape, generator=generator)
    moved = F.grid_sample(slices, grid, align_corners=False)
    inside = F.grid_sample(known[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0] > 0
    return (moved.pow(gamma) + noise).clamp(0, 1), F.grid_sample(masks, grid, align_corners=False), inside
