"""From label maps to images: contrast, texture, bias field, blur, noise, and the looks of several scanners."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Contrast:
    """How an acquisition shows each of l labels: brightness and texture; c is 1 for grey and 3 for colour."""

    brightness: Float[Tensor, "l c"]
    texture: Float[Tensor, "l"]
    grain: int
    """Pixels over which texture hangs together, at 128 px."""

    @staticmethod
    def random(labels: int, rng: Generator, colour: bool = False) -> Contrast:
        """A brightness for each label; in half of the contrasts most labels look nearly alike; air mostly dark."""
        channels = 3 if colour else 1
        brightness = torch.rand(labels, channels, generator=rng)
        if float(torch.rand(1, generator=rng)) < 0.5:
            centre = torch.rand(1, channels, generator=rng)
            near = torch.rand(labels, 1, generator=rng) < 0.75
            closeness = 0.2 + 0.4 * float(torch.rand(1, generator=rng))
            brightness = torch.where(near, centre + closeness * (brightness - centre), brightness)
        if colour:  # tissue colours of one picture are shades of a common hue
            hue = torch.rand(1, channels, generator=rng)
            brightness = 0.5 * brightness.mean(dim=1, keepdim=True) + 0.3 * hue + 0.2 * brightness
        if float(torch.rand(1, generator=rng)) < 0.8:
            brightness[0] = 0.05 * torch.rand(1, generator=rng)
        texture = 0.08 * torch.rand(labels, generator=rng) ** 2
        return Contrast(brightness, texture, int(torch.randint(1, 5, (1,), generator=rng)))

    def like(self, rng: Generator, jitter: float = 0.05) -> Contrast:
        """Another acquisition of the same kind."""
        moved = self.brightness + jitter * torch.randn(self.brightness.shape, generator=rng)
        return Contrast(moved.clamp(0, 1), self.texture, self.grain)


def render(labels: Int[Tensor, "n h w"], contrast: Contrast, rng: Generator) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] of n slices of one subject: one bias field, gamma, blur and noise level for all."""
    n, h, w = labels.shape
    brightness = contrast.brightness[labels].permute(0, 3, 1, 2)
    grain = _noise(n, h, w, max(1, contrast.grain * h // 128), rng)
    image = brightness + contrast.texture[labels][:, None] * grain
    image = image * torch.exp(0.25 * float(torch.rand(1, generator=rng)) * _smooth(1, h, w, 3, rng))
    image = _blur(image, 0.3 + 1.2 * float(torch.rand(1, generator=rng)) * h / 128)
    image = _noisy(image, rng)
    gamma = float(torch.exp(0.3 * torch.randn(1, generator=rng)))
    return _stretched(image).clamp_min(0) ** gamma


def _noisy(image: Tensor, rng: Generator) -> Tensor:
    """Gaussian noise as in CT, Rician as in MR, or multiplicative speckle as in ultrasound."""
    n, c, h, w = image.shape
    level = 0.08 * float(torch.rand(1, generator=rng)) ** 2
    kind = int(torch.randint(0, 4, (1,), generator=rng))
    noise = torch.randn(n, c, h, w, generator=rng)
    if kind == 0:
        other = torch.randn(n, c, h, w, generator=rng)
        return torch.sqrt((image + level * noise) ** 2 + (level * other) ** 2)
    if kind == 1:
        return image * (1 + 4 * level * _noise(n, h, w, 2, rng))
    return image + level * noise


def _noise(n: int, h: int, w: int, grain: int, rng: Generator) -> Float[Tensor, "n 1 h w"]:
    coarse = torch.randn(n, 1, -(-h // grain), -(-w // grain), generator=rng)
    return F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False) if grain > 1 else coarse


def _smooth(n: int, h: int, w: int, knots: int, rng: Generator) -> Float[Tensor, "n 1 h w"]:
    coarse = torch.randn(n, 1, knots, knots, generator=rng)
    return F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=True)


def _blur(image: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(2 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    c = image.shape[1]
    rows, columns = taps.view(1, 1, -1, 1).expand(c, 1, -1, 1), taps.view(1, 1, 1, -1).expand(c, 1, 1, -1)
    image = F.conv2d(F.pad(image, (0, 0, reach, reach), mode="replicate"), rows, groups=c)
    return F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="replicate"), columns, groups=c)


def _stretched(image: Tensor) -> Tensor:
    """Windowed as real scans are: between the 0.5th and 99.5th percentile of all slices together."""
    sample = image.flatten()[:: max(1, image.numel() // 4096)]
    low, high = torch.quantile(sample, 0.005), torch.quantile(sample, 0.995)
    return ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
