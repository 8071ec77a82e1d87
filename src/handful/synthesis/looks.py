"""Effects on finished pictures, whatever the modality: textures, colour casts, tints, vignettes, text and marks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handful.synthesis.modalities import burnt_in, fractal
from handful.synthesis.rng import Rng


def dressed(
    images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n h w"], chance: float, rng: Rng
) -> Float[Tensor, "n d h w"]:
    """Return the slices of one subject with random effects, each with probability `chance`, all values in [0, 1].

    d is 3 where grey slices were tinted, else c.
    """
    if rng.chance(chance):
        images = _textured(images, labels, rng)
    if images.shape[1] == 3 and rng.chance(2 * chance):
        images = _cast(images, rng)
    if images.shape[1] == 1 and rng.chance(0.5 * chance):
        images = _tinted(images, rng)
    if rng.chance(chance):
        images = _vignetted(images, rng)
    if rng.chance(chance):
        images = burnt_in(images, rng)
    if rng.chance(chance):
        images = _marked(images, rng)
    return images.clamp(0, 1)


def _textured(images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
    """Add a pattern whose strength differs from label to label: some structures differ by their texture alone."""
    n, _, h, w = images.shape
    strength = rng.between(0.05, 0.3) * rng.uniform(int(labels.max()) + 1) ** 2
    return images + strength[labels][:, None] * fractal(n, h, w, rng) * images.std()


def _cast(images: Tensor, rng: Rng) -> Tensor:
    gain = rng.tensor([math.exp(rng.gauss(0.2)) for _ in range(3)])[:, None, None]
    power = rng.tensor([math.exp(rng.gauss(0.15)) for _ in range(3)])[:, None, None]
    cast: Tensor = (images * gain).clamp(0, 1) ** power
    return cast


def _tinted(images: Tensor, rng: Rng) -> Tensor:
    """Show grey values as shades between two colours, as the colour maps of viewers do."""
    dark, bright = (0.3 * rng.uniform(3, 1, 1), 1 - 0.5 * rng.uniform(3, 1, 1))
    return dark + images * (bright - dark)


def _vignetted(images: Tensor, rng: Rng) -> Tensor:
    h, w = images.shape[2:]
    y = torch.linspace(-1, 1, h, device=images.device)[:, None] - rng.gauss(0.2)
    x = torch.linspace(-1, 1, w, device=images.device)[None] - rng.gauss(0.2)
    return images * (1 - rng.between(0.2, 0.7) * (x**2 + y**2) / 2).clamp_min(0.05)


def _marked(images: Tensor, rng: Rng) -> Tensor:
    """Draw one to four crosses, bars or rulers, as people and devices leave them in pictures."""
    images = images.clone()
    h, w = images.shape[2:]
    thick = max(1, h // 128)
    ink = rng.uniform(images.shape[1], 1, 1).round()
    for _ in range(rng.integer(1, 4)):
        y, x = rng.integer(h // 16, h - h // 16), rng.integer(w // 16, w - w // 16)
        long = rng.integer(2 * thick, h // 10)
        choice = rng.host.random()
        if choice < 0.4:  # a cross, as for callipers
            images[:, :, y : y + thick, max(0, x - long // 2) : x + long // 2] = ink
            images[:, :, max(0, y - long // 2) : y + long // 2, x : x + thick] = ink
        elif choice < 0.7:  # a bar
            images[:, :, y : y + 2 * thick, x : x + 2 * long] = ink
        else:  # the ticks of a ruler along one side
            step = max(3, h // rng.integer(10, 24))
            images[:, :, ::step, : 3 * thick] = ink
    return images
