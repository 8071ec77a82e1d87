"""Tasks out of synthetic anatomy: episodes to pre-train on, and a phantom cohort for the demo and the tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Generator, Tensor

from handful.synthesis.anatomy import Anatomy, Field, Organ, Subject, random_anatomy, slice_points
from handful.synthesis.scans import Contrast, render


@dataclass(frozen=True, eq=False)
class Episode:
    """One slice each of s subjects of an anatomy, all its structures, and t of them to find."""

    images: Float[Tensor, "s c h w"]
    labels: Int[Tensor, "s h w"]
    """Number of the structure at each pixel, the same in every subject; 0 is air."""
    masks: Bool[Tensor, "s t h w"]


def random_episode(subjects: int, targets: int, side: int, rng: Generator) -> Episode:
    """Slices at about the same height of several individuals; every target is to be seen in the first of them."""
    while True:
        anatomy = random_anatomy(rng)
        z = float(torch.rand(1, generator=rng)) - 0.5
        variety = 0.3 + 0.9 * float(torch.rand(1, generator=rng))
        labels = torch.stack([_slice(anatomy, z, variety, side, rng) for _ in range(subjects)])
        chosen = _targets(labels, targets, rng)
        if chosen is not None:
            break
    colour = float(torch.rand(1, generator=rng)) < 0.15
    contrast = Contrast.random(anatomy.labels, rng, colour)
    images = torch.cat([render(one[None], contrast.like(rng), rng) for one in labels])
    if float(torch.rand(1, generator=rng)) < 0.2:
        images = 1 - images
    return Episode(images, labels, labels[:, None] == chosen[None, :, None, None])


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan: voxels (i, j, k), its label map, the affine to RAS mm, and what the labels are called."""

    name: str
    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    names: dict[int, str]


def phantom_cohort(cases: int, seed: int = 0, shape: tuple[int, int, int] = (96, 88, 20)) -> Iterator[Phantom]:
    """Individuals of one invented anatomy: a large organ, a pair of kidneys told apart, a heart of wall and chamber."""
    rng = torch.Generator().manual_seed(seed)
    anatomy = _phantom_anatomy(rng)
    contrast = Contrast.random(anatomy.labels, rng)
    first = 1 + anatomy.regions.values.shape[0]
    brightness = [*torch.linspace(0.2, 0.35, first).tolist(), 0.75, 0.55, 0.55, 0.9, 0.45]
    contrast = Contrast(torch.tensor(brightness)[:, None], 0.3 * contrast.texture, contrast.grain)
    contrast.brightness[0] = 0.0
    names = {1: "liver", 2: "left kidney", 3: "right kidney", 4: "heart wall", 5: "heart chamber"}
    spacing = np.array([2.5, 2.5, 6.0])
    for case in range(cases):
        subject = Subject.random(rng, variety=0.6)
        points = subject.to_anatomy(_grid(shape))
        truth = anatomy.at(points)
        slices = render(truth.permute(2, 1, 0), contrast.like(rng, 0.03), rng)
        image = (slices[:, 0].permute(2, 1, 0) * 1000).round().short().numpy()
        labels = (truth - first + 1).clamp_min(0).to(torch.uint8).numpy()
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        yield Phantom(f"phantom_{case:02d}", image, labels, affine, names)


def _phantom_anatomy(rng: Generator) -> Anatomy:
    def organ(centre: list[float], radii: list[float], paired: bool = False, layers: tuple[float, ...] = ()) -> Organ:
        axes = torch.diag(1 / torch.tensor(radii))
        return Organ(torch.tensor(centre), axes, Field.random(1, 5, rng), 0.08, paired, layers)

    body = organ([0.0, 0.0, 0.0], [0.9, 0.85, 3.0])
    liver = organ([-0.4, -0.15, 0.1], [0.32, 0.38, 0.7])
    kidneys = organ([0.42, 0.42, -0.2], [0.15, 0.2, 0.55], paired=True)
    heart = organ([0.35, -0.3, 0.3], [0.28, 0.26, 0.6], layers=(0.6,))
    return Anatomy(Field.random(3, 4, rng), (liver, kidneys, heart), body)


def _grid(shape: tuple[int, int, int]) -> Float[Tensor, "i j k 3"]:
    lines = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def _slice(anatomy: Anatomy, z: float, variety: float, side: int, rng: Generator) -> Tensor:
    height = z + 0.1 * variety * float(torch.randn(1, generator=rng))
    points = slice_points(side, height, rng)
    return anatomy.at(Subject.random(rng, variety).to_anatomy(points))


def _targets(labels: Tensor, count: int, rng: Generator) -> Tensor | None:
    """Structures to find: neither specks nor most of the first slice; None if there are too few."""
    top = int(labels.max()) + 1
    area = torch.bincount(labels[0].flatten(), minlength=top) / labels[0].numel()
    fit = ((area > 0.004) & (area < 0.5)).nonzero()[:, 0]
    fit = fit[fit > 0]
    if len(fit) < 2:
        return None
    order = torch.randperm(len(fit), generator=rng)
    return fit[order].repeat(count)[:count]
