"""Random views of slices as nnU-Net makes them: each change comes with a probability, so that some slices stay plain.

After the augmentation of nnU-Net's 2D training (Isensee et al., Nature Methods 2021): rotation, scale, elastic bending
and mirroring move a slice; gamma, contrast, brightness, noise, blur and a lower resolution change its grey values. A
smooth field of light, as from a coil near the body, is added. What moves and what relights are two steps, since a
teacher may see the moved slice, and its pupil the relit one as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

UNKNOWN = -1
"""Class number of pixels that nobody has labelled, and of those outside the slice."""


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How slices are moved, and how often."""

    rotation: float = math.pi / 6
    """Largest angle, in radians."""
    scale: float = 1.4
    """Largest factor of magnification, and of reduction."""
    stretch: float = 1.15
    """Largest factor between the two axes."""
    shift: float = 0.15
    """Largest shift, as a share of the side."""
    elastic: float = 0.03
    """Largest deviation of a smooth random field of shifts, as a share of the side."""
    mirror: bool = False
    """Whether left and right may change places."""


def random_grids(n: int, size: tuple[int, int], moves: Moves, generator: Generator) -> Float[Tensor, "n h w 2"]:
    """Where each pixel of n views comes from, in the frame of `grid_sample`.

    Half of the views are turned, half are magnified or reduced, half are stretched, three in ten are bent.
    """
    h, w = size
    angle = _some(n, 0.5, generator) * _uniform(n, -moves.rotation, moves.rotation, generator)
    scale = torch.exp(_some(n, 0.5, generator) * _uniform(n, -math.log(moves.scale), math.log(moves.scale), generator))
    ratio = torch.exp(
        _some(n, 0.5, generator) * _uniform(n, -math.log(moves.stretch), math.log(moves.stretch), generator) / 2
    )
    side = 1 - 2 * _some(n, 0.5, generator) if moves.mirror else torch.ones(n)
    across, down = 2 * moves.shift * (2 * torch.rand(2, n, generator=generator) - 1)  # the frame is 2 wide
    sine, cosine = angle.sin() / scale, angle.cos() / scale
    rows = torch.stack(
        [side * cosine * ratio, -sine * h / w, across, side * sine * w / h, cosine / ratio, down], dim=1
    ).view(n, 2, 3)
    grid: Tensor = F.affine_grid(rows, [n, 1, h, w], align_corners=False)
    strength = 2 * _some(n, 0.3, generator) * _uniform(n, 0, moves.elastic, generator)
    if not strength.any():
        return grid
    knots = strength[:, None, None, None] * torch.randn(n, 2, 6, 6, generator=generator)
    return grid + F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def moved(slices: Float[Tensor, "n c h w"], grids: Float[Tensor, "n h w 2"]) -> Float[Tensor, "n c h w"]:
    """The slices there; 0 outside of them."""
    found: Tensor = F.grid_sample(slices, grids, align_corners=False)
    return found


def moved_classes(
    classes: Int[Tensor, "n d h w"], grids: Float[Tensor, "n h w 2"], black_is_background: bool = False
) -> Int[Tensor, "n d h w"]:
    """The class of the nearest pixel; UNKNOWN outside of the slice.

    With `black_is_background`, it is 0 outside of a slice that is labelled everywhere.
    """
    shifted = (classes - UNKNOWN).float()
    found = F.grid_sample(shifted, grids, mode="nearest", align_corners=False).to(classes.dtype) + UNKNOWN
    if not black_is_background:
        return found
    whole = (classes != UNKNOWN).all(dim=(-2, -1))
    return found.masked_fill((found == UNKNOWN) & whole[..., None, None], 0)


def relit(
    slices: Float[Tensor, "n c h w"], generator: Generator, strength: float = 1.0, inverted: float = 0.0
) -> Float[Tensor, "n c h w"]:
    """The slices, in [0, 1], with other grey values; all channels of a slice alike but for noise and tint.

    `strength` multiplies how far and how often: 1 for labelled slices, more for the strong view of a pupil. `inverted`
    is the share of the slices that become negatives: 1 minus each value.
    """
    n, channels, h, w = slices.shape

    def amount(share: float, far: float) -> Float[Tensor, "n 1 1 1"]:
        chosen = _some(n, share * strength, generator)
        return (chosen * _uniform(n, -far * strength, far * strength, generator))[:, None, None, None]

    lit = slices.clamp(0, 1).pow(amount(0.5, 0.6).exp())
    mean = lit.mean(dim=(1, 2, 3), keepdim=True)
    lit = (lit - mean) * amount(0.3, 0.4).exp() + mean
    lit = lit * amount(0.3, 0.25).exp()
    knots = amount(0.3, 0.25).abs() * torch.randn(n, 1, 4, 4, generator=generator)
    lit = lit * F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).exp()
    if channels == 3:
        lit = lit * (amount(0.3, 0.1) * torch.randn(n, 3, 1, 1, generator=generator)).exp()
    lit = lit + amount(0.2, 0.1).abs() * torch.randn(slices.shape, generator=generator)
    lit = _softened(lit, strength, generator)
    if not inverted:
        return lit
    return torch.where(_some(n, inverted, generator)[:, None, None, None] > 0, 1 - lit, lit)


def _softened(slices: Float[Tensor, "n c h w"], strength: float, generator: Generator) -> Float[Tensor, "n c h w"]:
    """A fifth of the slices blurred, and a fifth at a lower resolution."""
    chosen, extents = torch.rand(2, len(slices), generator=generator), torch.rand(len(slices), generator=generator)
    found = []
    for one, luck, extent in zip(torch.split(slices, 1), chosen.T.tolist(), extents.tolist(), strict=True):
        if luck[0] < 0.2 * strength:
            one = _blurred(one, 0.5 + extent * (0.7 * strength))
        elif luck[1] < 0.2 * strength:
            one = _coarser(one, 1 - extent / 2)
        found.append(one)
    return torch.cat(found)


def _blurred(one: Float[Tensor, "1 c h w"], deviation: float) -> Float[Tensor, "1 c h w"]:
    """Smoothed by a Gaussian of that deviation in pixels."""
    offsets = torch.arange(-3.0, 4.0)
    weights = torch.exp(-(offsets**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    planes = F.pad(one.transpose(0, 1), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(planes, weights), weights.transpose(2, 3)).transpose(0, 1)


def _coarser(one: Float[Tensor, "1 c h w"], share: float) -> Float[Tensor, "1 c h w"]:
    """As a scan of that share of the pixels along each edge would show it."""
    size = (one.shape[-2], one.shape[-1])
    fewer = [max(1, round(edge * share)) for edge in size]
    return F.interpolate(F.interpolate(one, fewer, mode="nearest"), size, mode="bicubic", align_corners=False)


def _uniform(n: int, low: float, high: float, generator: Generator) -> Float[Tensor, " n"]:
    return low + (high - low) * torch.rand(n, generator=generator)


def _some(n: int, share: float, generator: Generator) -> Float[Tensor, " n"]:
    """1 for about that share of n, 0 for the others."""
    return (torch.rand(n, generator=generator) < share).float()
