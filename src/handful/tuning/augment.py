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
    valid_mask: Bool[Tensor, "n h w"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"], Bool[Tensor, "n h w"]]:
    """Slices turned by ±30°, scaled by .65 to 1.5, shifted by ±10 %, relit, some of them coarser; never flipped.

    Relit: gamma .5 to 2, gain .75 to 1.3, a smooth field of light as from a coil near the body, a little noise. That
    is more than scans of one hospital differ, and for a few labelled slices worth more than any setting of a method.
    """
    view, inside, grid = moved_and_relit(slices, valid_mask, generator)
    return view, F.grid_sample(masks, grid, align_corners=False), inside


def moved_and_relit(
    slices: Float[Tensor, "n c h w"], valid_mask: Bool[Tensor, "n h w"], generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n h w"], Float[Tensor, "n h w 2"]]:
    """As `augmented`, with the grid for `grid_sample` in place of the masks, which may be moved one slice at a time."""
    n, _, h, w = slices.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, scale = uniform(-math.pi / 6, math.pi / 6), uniform(math.log(0.65), math.log(1.5)).exp()
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
    gamma = uniform(math.log(0.5), math.log(2.0)).exp()[:, None, None, None]
    gain = uniform(0.75, 1.3)[:, None, None, None]
    noise = uniform(0, 0.07)[:, None, None, None] * torch.randn(slices.shape, generator=generator)
    moved = F.grid_sample(slices, grid, align_corners=False).clamp_min(0)
    lit = (moved.pow(gamma) * gain * _field(n, h, w, generator) + noise).clamp(0, 1)
    inside = F.grid_sample(valid_mask[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0] > 0
    return coarsened(lit, 0.25, generator), inside, grid


def coarsened(slices: Float[Tensor, "n c h w"], share: float, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Some of the slices as a coarser scan would show them, with as few as half the pixels along each edge."""
    chosen, factor = torch.rand(2, len(slices), generator=generator)
    size = (slices.shape[-2], slices.shape[-1])
    found = []
    for one, luck, part in zip(torch.split(slices, 1), chosen.tolist(), factor.tolist(), strict=True):
        if luck < share:
            fewer = [max(1, round(edge * (1 + part) / 2)) for edge in size]
            one = F.interpolate(F.interpolate(one, fewer, mode="area"), size, mode="bilinear", align_corners=False)
        found.append(one)
    return torch.cat(found)


def _field(n: int, h: int, w: int, generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Smooth light: a factor a pixel round 1, from 4 × 4 random ones."""
    knots = 0.25 * torch.randn(n, 1, 4, 4, generator=generator)
    return F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).exp()
