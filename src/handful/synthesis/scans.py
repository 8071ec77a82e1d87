"""From label maps to images: brightness and texture of each structure, then the effects of a scanner."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handful.synthesis.rng import Rng

Finish = Callable[[Tensor, Tensor, Rng], Tensor]
"""Adds the effects of a modality to images (n, c, h, w) in [0, 1], given the kind of every pixel (n, h, w)."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Brightness and texture of each of l labels in one acquisition; c is 1 for grey and 3 for colour."""

    brightness: Float[Tensor, "l c"]
    texture: Float[Tensor, "l"]
    grain: int
    """Size of the texture's grain in pixels, in an image of 128 × 128."""

    @staticmethod
    def random(appearance: tuple[int, ...], rng: Rng, colour: bool = False) -> Contrast:
        """Return a random contrast; `appearance` gives, for each label, the label whose brightness it shares.

        In half of the contrasts, most labels differ little in brightness. Air is mostly dark.
        """
        labels, channels = len(appearance), 3 if colour else 1
        brightness = rng.uniform(labels, channels)
        if rng.chance(0.5):
            near = rng.uniform(labels, 1) < 0.75
            centre = rng.uniform(1, channels)
            brightness = torch.where(near, centre + rng.between(0.15, 0.6) * (brightness - centre), brightness)
        if colour:  # tissue colours of one picture are shades of a common hue
            hue = rng.uniform(1, channels)
            brightness = 0.5 * brightness.mean(dim=1, keepdim=True) + 0.3 * hue + 0.2 * brightness
        if rng.chance(0.8):
            brightness[0] = rng.between(0, 0.05)
        texture = rng.between(0.01, 0.1) * rng.uniform(labels) ** 2
        same = torch.tensor(appearance).to(brightness.device)
        return Contrast(brightness[same], texture[same], rng.integer(1, 4))

    def like(self, rng: Rng, jitter: float = 0.05) -> Contrast:
        """Return the contrast of another acquisition with the same protocol."""
        labels, channels = self.brightness.shape
        moved = self.brightness + jitter * rng.normal(labels, 1)
        if channels > 1:  # the light source tints all labels equally
            moved = moved + jitter * rng.normal(1, channels)
        return replace(self, brightness=moved.clamp(0, 1))


@dataclass(frozen=True)
class Scanner:
    """Effects on every picture of an acquisition: bias field, gamma, blur, noise, coarse pixels, ghosts, windowing."""

    bias: float
    gamma: float
    blur: float
    """Standard deviation in pixels, in an image of 128 × 128."""
    noise: float
    """Standard deviation, relative to that of the picture without noise."""
    rician: bool
    speckle: float
    coarser: tuple[float, float]
    """Pixels of the picture per pixel of the scan, down and across."""
    ghost: float
    inverted: bool
    tails: float
    """Share of the darkest and of the brightest pixels that the window clips."""

    @staticmethod
    def random(rng: Rng) -> Scanner:
        coarser = (1.0, 1.0)
        if rng.chance(0.3):
            down, across = rng.between(1, 4) ** rng.between(0.3, 1.3), rng.host.choice([1.0, 1.0, 0.4])
            coarser = (max(1.0, down), max(1.0, down * across))
            coarser = coarser if rng.chance(0.5) else coarser[::-1]
        kind = rng.integer(0, 3)
        level = 0.5 * rng.host.random() ** 2
        return Scanner(
            bias=rng.between(0, 0.3),
            gamma=math.exp(rng.gauss(0.3)),
            blur=rng.between(0.2, 1.3),
            noise=0.0 if kind == 1 else level,
            rician=kind == 0,
            speckle=0.8 * level if kind == 1 else 0.0,
            coarser=coarser,
            ghost=rng.between(0.03, 0.2) if rng.chance(0.06) else 0.0,
            inverted=rng.chance(0.12),
            tails=0.005 if rng.chance(0.7) else rng.between(0, 0.06),
        )

    def like(self, rng: Rng) -> Scanner:
        """Return the same scanner with slightly different effects, as on another day."""
        return replace(
            self,
            bias=self.bias * rng.between(0.6, 1.4),
            gamma=self.gamma * math.exp(rng.gauss(0.08)),
            blur=self.blur * rng.between(0.8, 1.25),
            noise=self.noise * rng.between(0.6, 1.5),
            speckle=self.speckle * rng.between(0.6, 1.5),
        )

    def __call__(self, image: Float[Tensor, "n c h w"], rng: Rng) -> Float[Tensor, "n c h w"]:
        h, w = image.shape[2:]
        image = image * torch.exp(self.bias * smooth(1, h, w, 3, rng))
        if self.ghost:
            image = image + self.ghost * image.roll(rng.integer(h // 6, h // 2), dims=2)
        image = blur(image, self.blur * h / 128)
        if max(self.coarser) > 1.2:  # before the noise of coarse pixels, which is coarse too
            small = (max(16, round(h / self.coarser[0])), max(16, round(w / self.coarser[1])))
            image = F.interpolate(image, size=small, mode="area")
        image = self._noisy(image, rng)
        if image.shape[2:] != (h, w):
            image = F.interpolate(image, size=(h, w), mode="bicubic", align_corners=False)
        image = _stretched(image, self.tails) ** self.gamma
        return 1 - image if self.inverted and image.shape[1] == 1 else image

    def _noisy(self, image: Tensor, rng: Rng) -> Tensor:
        """Add Gaussian noise as in CT, Rician noise as in MR, or multiplicative speckle."""
        n, _, h, w = image.shape
        if self.speckle:
            image = image * (1 + self.speckle * noise(n, h, w, 2, rng))
        if self.noise:
            level = self.noise * image.std() * (1.0 if image.shape[1] == 1 else 0.3)  # cameras have less noise
            image = image + level * rng.normal(*image.shape)
            if self.rician:
                image = torch.hypot(image, level * rng.normal(*image.shape))
        return image


def render(
    labels: Int[Tensor, "n h w"],
    contrast: Contrast,
    scanner: Scanner,
    rng: Rng,
    kinds: Int[Tensor, "l"] | None = None,
    finish: Finish | None = None,
    planes: Int[Tensor, "n p h w"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Return images in [0, 1] of n slices of one subject.

    `finish` adds the effects of a modality; it needs `kinds`, the kind of each label. With `planes`, an image is the
    mean brightness of p label maps, as in a projection.
    """
    n, h, w = labels.shape
    grain = noise(n, h, w, max(1, contrast.grain * h // 128), rng)
    coarse = smooth(1, h, w, 24, rng)  # structure of the tissue: the same in neighbouring slices
    image = (contrast.brightness[labels] if planes is None else contrast.brightness[planes].mean(1)).permute(0, 3, 1, 2)
    image = image + contrast.texture[labels][:, None] * (grain + 0.7 * coarse)
    if finish is not None and kinds is not None:
        image = finish(image.clamp(0, 1), kinds[labels], rng)
    return scanner(image, rng)


def noise(n: int, h: int, w: int, grain: int | tuple[int, int], rng: Rng) -> Float[Tensor, "n 1 h w"]:
    """Return Gaussian noise whose grain is this many pixels, down and across."""
    down, across = (grain, grain) if isinstance(grain, int) else grain
    coarse = rng.normal(n, 1, -(-h // down), -(-w // across))
    if down == across == 1:
        return coarse
    return F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)


def smooth(n: int, h: int, w: int, knots: int | tuple[int, int], rng: Rng) -> Float[Tensor, "n 1 h w"]:
    """Return smooth Gaussian noise that varies over about 1 / knots of the picture, down and across."""
    down, across = (knots, knots) if isinstance(knots, int) else knots
    return F.interpolate(rng.normal(n, 1, down, across), size=(h, w), mode="bicubic", align_corners=True)


def blur(image: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Return the image smoothed by a Gaussian whose standard deviation is `sigma` pixels."""
    if sigma < 0.25:
        return image
    reach = max(1, round(2 * sigma))
    c = image.shape[1]
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma) ** 2)
    taps = taps / taps.sum()
    rows, columns = taps.view(1, 1, -1, 1).expand(c, 1, -1, 1), taps.view(1, 1, 1, -1).expand(c, 1, 1, -1)
    image = F.conv2d(F.pad(image, (0, 0, reach, reach), mode="replicate"), rows, groups=c)
    return F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="replicate"), columns, groups=c)


def _stretched(image: Tensor, tails: float) -> Tensor:
    """Rescale to [0, 1] between two percentiles of all slices together, as real scans are."""
    sample = image.flatten()[:: max(1, image.numel() // 4096)].sort().values
    low, high = sample[int(tails * (len(sample) - 1))], sample[int((1 - tails) * (len(sample) - 1))]
    return ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
