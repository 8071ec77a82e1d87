"""From label maps to images: contrast and texture of each structure, then what a scanner does to the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handful.synthesis.draw import Draw

Finish = Callable[[Tensor, Tensor, Draw], Tensor]
"""What a modality adds to an image (n, c, h, w) in [0, 1] whose pixels are of these kinds (n, h, w)."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """How an acquisition shows each of l labels: brightness and texture; c is 1 for grey and 3 for colour."""

    brightness: Float[Tensor, "l c"]
    texture: Float[Tensor, "l"]
    grain: int
    """Pixels over which texture hangs together, at 128 px."""

    @staticmethod
    def random(alike: tuple[int, ...], draw: Draw, colour: bool = False) -> Contrast:
        """A brightness for each label, the same for those alike; in half of the contrasts most labels look nearly so.

        Air is mostly dark.
        """
        labels, channels = len(alike), 3 if colour else 1
        brightness = draw.uniform(labels, channels)
        if draw.chance(0.5):
            near = draw.uniform(labels, 1) < 0.75
            centre = draw.uniform(1, channels)
            brightness = torch.where(near, centre + draw.between(0.15, 0.6) * (brightness - centre), brightness)
        if colour:  # tissue colours of one picture are shades of a common hue
            hue = draw.uniform(1, channels)
            brightness = 0.5 * brightness.mean(dim=1, keepdim=True) + 0.3 * hue + 0.2 * brightness
        if draw.chance(0.8):
            brightness[0] = draw.between(0, 0.05)
        texture = draw.between(0.01, 0.1) * draw.uniform(labels) ** 2
        same = torch.tensor(alike).to(brightness.device)
        return Contrast(brightness[same], texture[same], draw.integer(1, 4))

    def like(self, draw: Draw, jitter: float = 0.05) -> Contrast:
        """Another acquisition of the same kind."""
        labels, channels = self.brightness.shape
        moved = self.brightness + jitter * draw.normal(labels, 1)
        if channels > 1:  # the lamp gives all the same tinge
            moved = moved + jitter * draw.normal(1, channels)
        return replace(self, brightness=moved.clamp(0, 1))


@dataclass(frozen=True)
class Scanner:
    """What is done to every picture of an acquisition, whatever it shows."""

    bias: float
    gamma: float
    blur: float
    """Standard deviation, in pixels at 128 px."""
    noise: float
    """Deviation, in those of the picture without it."""
    rician: bool
    speckle: float
    coarser: tuple[float, float]
    """How many pixels of the picture one of the scan fills, down and across."""
    ghost: float
    inverted: bool
    tails: float
    """Share of the darkest and of the brightest pixels that the window clips."""

    @staticmethod
    def random(draw: Draw) -> Scanner:
        coarser = (1.0, 1.0)
        if draw.chance(0.3):
            down, across = draw.between(1, 4) ** draw.between(0.3, 1.3), draw.host.choice([1.0, 1.0, 0.4])
            coarser = (max(1.0, down), max(1.0, down * across))
            coarser = coarser if draw.chance(0.5) else coarser[::-1]
        kind = draw.integer(0, 3)
        level = 0.5 * draw.host.random() ** 2
        return Scanner(
            bias=draw.between(0, 0.3),
            gamma=math.exp(draw.gauss(0.3)),
            blur=draw.between(0.2, 1.3),
            noise=0.0 if kind == 1 else level,
            rician=kind == 0,
            speckle=0.8 * level if kind == 1 else 0.0,
            coarser=coarser,
            ghost=draw.between(0.03, 0.2) if draw.chance(0.06) else 0.0,
            inverted=draw.chance(0.12),
            tails=0.005 if draw.chance(0.7) else draw.between(0, 0.06),
        )

    def like(self, draw: Draw) -> Scanner:
        """The same machine on another day."""
        return replace(
            self,
            bias=self.bias * draw.between(0.6, 1.4),
            gamma=self.gamma * math.exp(draw.gauss(0.08)),
            blur=self.blur * draw.between(0.8, 1.25),
            noise=self.noise * draw.between(0.6, 1.5),
            speckle=self.speckle * draw.between(0.6, 1.5),
        )

    def __call__(self, image: Float[Tensor, "n c h w"], draw: Draw) -> Float[Tensor, "n c h w"]:
        h, w = image.shape[2:]
        image = image * torch.exp(self.bias * smooth(1, h, w, 3, draw))
        if self.ghost:
            image = image + self.ghost * image.roll(draw.integer(h // 6, h // 2), dims=2)
        image = blur(image, self.blur * h / 128)
        if max(self.coarser) > 1.2:  # before the noise of coarse pixels, which is coarse too
            small = (max(16, round(h / self.coarser[0])), max(16, round(w / self.coarser[1])))
            image = F.interpolate(image, size=small, mode="area")
        image = self._noisy(image, draw)
        if image.shape[2:] != (h, w):
            image = F.interpolate(image, size=(h, w), mode="bicubic", align_corners=False)
        image = _stretched(image, self.tails) ** self.gamma
        return 1 - image if self.inverted and image.shape[1] == 1 else image

    def _noisy(self, image: Tensor, draw: Draw) -> Tensor:
        """Gaussian noise as in CT, Rician as in MR, or multiplicative speckle."""
        n, _, h, w = image.shape
        if self.speckle:
            image = image * (1 + self.speckle * noise(n, h, w, 2, draw))
        if self.noise:
            level = self.noise * image.std() * (1.0 if image.shape[1] == 1 else 0.3)  # cameras see better
            image = image + level * draw.normal(*image.shape)
            if self.rician:
                image = torch.hypot(image, level * draw.normal(*image.shape))
        return image


def render(
    labels: Int[Tensor, "n h w"],
    contrast: Contrast,
    scanner: Scanner,
    draw: Draw,
    kinds: Int[Tensor, "l"] | None = None,
    finish: Finish | None = None,
) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] of n slices of one subject; with `finish`, what a modality makes of labels of these kinds."""
    n, h, w = labels.shape
    grain = noise(n, h, w, max(1, contrast.grain * h // 128), draw)
    coarse = smooth(1, h, w, 24, draw)  # parenchyma: the same in neighbouring slices
    image = contrast.brightness[labels].permute(0, 3, 1, 2)
    image = image + contrast.texture[labels][:, None] * (grain + 0.7 * coarse)
    if finish is not None and kinds is not None:
        image = finish(image.clamp(0, 1), kinds[labels], draw)
    return scanner(image, draw)


def noise(n: int, h: int, w: int, grain: int | tuple[int, int], draw: Draw) -> Float[Tensor, "n 1 h w"]:
    """Normal noise that hangs together over so many pixels, down and across."""
    down, across = (grain, grain) if isinstance(grain, int) else grain
    coarse = draw.normal(n, 1, -(-h // down), -(-w // across))
    if down == across == 1:
        return coarse
    return F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)


def smooth(n: int, h: int, w: int, knots: int | tuple[int, int], draw: Draw) -> Float[Tensor, "n 1 h w"]:
    """Normal noise that varies over about 1 / knots of the picture, down and across."""
    down, across = (knots, knots) if isinstance(knots, int) else knots
    return F.interpolate(draw.normal(n, 1, down, across), size=(h, w), mode="bicubic", align_corners=True)


def blur(image: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Smoothed by a Gaussian of this many pixels."""
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
    """Windowed as real scans are: between two percentiles of all slices together."""
    sample = image.flatten()[:: max(1, image.numel() // 4096)].sort().values
    low, high = sample[int(tails * (len(sample) - 1))], sample[int((1 - tails) * (len(sample) - 1))]
    return ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
