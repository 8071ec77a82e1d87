"""Random anatomies: bodies with organs, pairs, tubes and layers, as functions of space that any slice can be cut from.

An anatomy says which structure lies at a point of the cube [-1, 1]³ (x, y, z). A subject is that anatomy seen through
an affine and a smooth deformation of its own. Nothing is drawn on a grid, so slices of one subject belong together,
in any plane and at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

GRID = 24
"""Cells along a smooth random field; finer detail than organs have is not needed."""


@dataclass(frozen=True, eq=False)
class Field:
    """Smooth random functions of space: c of them, as (c, GRID, GRID, GRID) values to interpolate."""

    values: Float[Tensor, "c g g g"]

    @staticmethod
    def random(count: int, scale: int, rng: Generator) -> Field:
        """Fields that vary over about 1 / scale of the cube, each of mean 0 and deviation 1."""
        coarse = torch.randn(1, count, scale, scale, scale, generator=rng)
        fine = F.interpolate(coarse, size=(GRID,) * 3, mode="trilinear", align_corners=True)
        fine = F.avg_pool3d(F.pad(fine, (1,) * 6, mode="replicate"), 3, stride=1)[0]
        spread = fine.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
        return Field((fine - fine.mean(dim=(1, 2, 3), keepdim=True)) / spread)

    def at(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... c"]:
        flat = points.reshape(1, 1, 1, -1, 3)
        read = F.grid_sample(self.values[None], flat, padding_mode="border", align_corners=True)
        return read[0, :, 0, 0].T.reshape(*points.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Organ:
    """A blob: an ellipsoid with a wavy surface; perhaps mirrored to the other side, perhaps with a shell or a core."""

    centre: Float[Tensor, 3]
    axes: Float[Tensor, "3 3"]
    """Takes an offset from the centre to one whose length is 1 on the surface."""
    wave: Field
    waviness: float
    paired: bool
    layers: tuple[float, ...]
    """Relative radii at which a further structure begins, inwards: (0.6,) is a wall around a cavity."""

    @property
    def structures(self) -> int:
        return (1 + len(self.layers)) * (2 if self.paired else 1)

    def depth(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
        """1 at the centre, 0 on the surface, negative outside."""
        radius = torch.linalg.vector_norm((points - self.centre) @ self.axes.T, dim=-1)
        depth: Tensor = 1 - radius + self.waviness * self.wave.at(points)[..., 0]
        return depth

    def paint(self, points: Float[Tensor, "... 3"], labels: Int[Tensor, "..."], first: int) -> Int[Tensor, "..."]:
        """The labels with this organ drawn over them, its structures numbered from `first`."""
        mirror = points * points.new_tensor([-1.0, 1.0, 1.0])
        for side in [points, mirror] if self.paired else [points]:
            depth = self.depth(side)
            for inward in (0.0, *[1 - radius for radius in self.layers]):
                labels = torch.where(depth > inward, first, labels)
                first += 1
        return labels


@dataclass(frozen=True, eq=False)
class Tube:
    """A vessel, a cord, a bowel loop: everything within a radius of a smooth curve; perhaps hollow."""

    path: Float[Tensor, "t 3"]
    radius: float
    hollow: bool

    @property
    def structures(self) -> int:
        return 2 if self.hollow else 1

    def paint(self, points: Float[Tensor, "... 3"], labels: Int[Tensor, "..."], first: int) -> Int[Tensor, "..."]:
        near = torch.cdist(points.reshape(-1, 3), self.path).amin(dim=1).reshape(points.shape[:-1])
        labels = torch.where(near < self.radius, first, labels)
        if self.hollow:
            labels = torch.where(near < 0.6 * self.radius, first + 1, labels)
        return labels


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One random body: tissue regions that fill it, structures drawn over them, and the air outside (label 0)."""

    regions: Field
    structures: tuple[Organ | Tube, ...]
    body: Organ | None

    @property
    def labels(self) -> int:
        """How many labels there are, air included."""
        return 1 + self.regions.values.shape[0] + sum(s.structures for s in self.structures)

    def at(self, points: Float[Tensor, "... 3"]) -> Int[Tensor, "..."]:
        """The label at each point."""
        labels = 1 + self.regions.at(points).argmax(dim=-1)
        first = 1 + self.regions.values.shape[0]
        for structure in self.structures:
            labels = structure.paint(points, labels, first)
            first += structure.structures
        return labels if self.body is None else torch.where(self.body.depth(points) > 0, labels, 0)


@dataclass(frozen=True, eq=False)
class Subject:
    """One individual of an anatomy: where its points lie in the anatomy's own space."""

    affine: Float[Tensor, "3 4"]
    warp: Field
    strength: float

    def to_anatomy(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        moved = points @ self.affine[:, :3].T + self.affine[:, 3]
        return moved + self.strength * self.warp.at(points)

    @staticmethod
    def random(rng: Generator, variety: float = 1.0) -> Subject:
        """`variety` 0 is the anatomy itself, 1 individuals as unlike as people are."""
        turn = _rotation(0.2 * variety * torch.randn(3, generator=rng))
        size = torch.exp(0.12 * variety * torch.randn(3, generator=rng))
        shift = 0.08 * variety * torch.randn(3, 1, generator=rng)
        return Subject(
            torch.cat([turn * size, shift], dim=1),
            Field.random(3, _integer(3, 6, rng), rng),
            0.06 * variety * float(torch.rand(1, generator=rng)),
        )


def random_anatomy(rng: Generator) -> Anatomy:
    """A body with 2 to 8 tissue regions and 2 to 7 organs, pairs, layered organs and tubes."""
    regions = Field.random(_integer(2, 8, rng), _integer(2, 7, rng), rng)
    structures: list[Organ | Tube] = []
    for _ in range(_integer(2, 7, rng)):
        structures.append(_tube(rng) if _chance(0.2, rng) else random_organ(rng))
    return Anatomy(regions, tuple(structures), _body(rng) if _chance(0.7, rng) else None)


def random_organ(rng: Generator) -> Organ:
    """A blob somewhere in the body, a fifteenth to half of it wide."""
    radius = 0.07 * 7 ** float(torch.rand(1, generator=rng))
    spread = radius * torch.exp(0.35 * torch.randn(3, generator=rng))
    spread[2] = spread[2].clamp_min(0.2)  # slices away from the centre should still meet it
    axes = _rotation(torch.randn(3, generator=rng) * torch.tensor([0.3, 0.3, 1.5])) / spread[:, None]
    centre = (torch.rand(3, generator=rng) * 2 - 1) * torch.tensor([0.6, 0.6, 0.5])
    paired = _chance(0.25, rng)
    if paired:
        centre[0] = (radius + 0.05 + 0.4 * torch.rand(1, generator=rng)).clamp(max=0.7)
    layers: tuple[float, ...] = ()
    if _chance(0.35, rng):
        layers = tuple(sorted((0.35 + 0.5 * torch.rand(_integer(1, 2, rng), generator=rng)).tolist(), reverse=True))
    wave = Field.random(1, _integer(4, 9, rng), rng)
    return Organ(centre, axes, wave, 0.25 * float(torch.rand(1, generator=rng)), paired, layers)


def slice_points(side: int, z: float, rng: Generator | None = None) -> Float[Tensor, "side side 3"]:
    """Points of the axial slice at height z; with a generator, of a slightly tilted, shifted and zoomed one."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, z)], dim=-1)
    if rng is None:
        return points
    zoom = 0.75 + 0.4 * float(torch.rand(1, generator=rng))
    tilt = _rotation(torch.randn(3, generator=rng) * torch.tensor([0.08, 0.08, 0.1]))
    return zoom * (points @ tilt.T) + 0.08 * torch.randn(3, generator=rng) * torch.tensor([1.0, 1.0, 0.3])


def _body(rng: Generator) -> Organ:
    spread = 0.75 + 0.3 * torch.rand(3, generator=rng)
    spread[2] = 3.0
    wave = Field.random(1, _integer(3, 5, rng), rng)
    return Organ(torch.zeros(3), torch.diag(1 / spread), wave, 0.06 * float(torch.rand(1, generator=rng)), False, ())


def _tube(rng: Generator) -> Tube:
    """A curve through a few random points, mostly along z so that axial slices cut it."""
    knots = (torch.rand(5, 3, generator=rng) * 2 - 1) * torch.tensor([0.5, 0.5, 0.3])
    knots[:, 2] += torch.linspace(-1, 1, 5)
    path = F.interpolate(knots.T[None], size=48, mode="linear", align_corners=True)
    path = F.avg_pool1d(F.pad(path, (4, 4), mode="replicate"), 9, stride=1)[0].T
    return Tube(path, 0.04 + 0.12 * float(torch.rand(1, generator=rng)), _chance(0.3, rng))


def _rotation(angles: Float[Tensor, 3]) -> Float[Tensor, "3 3"]:
    x, y, z = angles.tolist()
    skew = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return torch.matrix_exp(skew)


def _integer(low: int, high: int, rng: Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def _chance(probability: float, rng: Generator) -> bool:
    return float(torch.rand(1, generator=rng)) < probability
