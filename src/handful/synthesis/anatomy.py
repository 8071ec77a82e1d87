"""Random anatomies: organs, layers, tubes, cells and lesions as functions of space that any slice can be cut from.

An anatomy says which structure lies at a point of the cube [-1, 1]³ (x, y, z). A subject is that anatomy transformed by
an affine and a smooth deformation of its own, with lesions and cells in places of its own. Nothing is drawn on a grid,
so slices of one subject belong together, in any plane and at any resolution.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handful.synthesis.draw import Draw

GRID = 20
"""Cells along a smooth random field; finer detail than organs have is not needed."""


class Kind(IntEnum):
    """What a structure is made of, for the looks that care."""

    AIR = 0
    TISSUE = 1
    FAT = 2
    ORGAN = 3
    WALL = 4
    CAVITY = 5
    VESSEL = 6
    BONE = 7
    LUNG = 8
    LESION = 9
    CELL = 10
    DISC = 11
    CUP = 12


@dataclass(frozen=True, eq=False)
class Field:
    """Smooth random functions of space: c of them, as (c, GRID, GRID, GRID) values to interpolate."""

    values: Float[Tensor, "c g g g"]

    @staticmethod
    def random(count: int, scale: int, draw: Draw) -> Field:
        """Fields that vary over about 1 / scale of the cube, each of mean 0 and deviation 1."""
        weights = _spline(scale).to(draw.generator.device)
        values = torch.einsum("cxyz,ix,jy,kz->cijk", draw.normal(count, *(scale + 3,) * 3), weights, weights, weights)
        spread = values.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
        return Field((values - values.mean(dim=(1, 2, 3), keepdim=True)) / spread)

    def at(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... c"]:
        flat = points.reshape(1, 1, 1, -1, 3)
        read = F.grid_sample(self.values[None], flat, padding_mode="reflection", align_corners=True)
        return read[0, :, 0, 0].T.reshape(*points.shape[:-1], -1)


class Structure(ABC):
    """Something in a body: one or more numbered parts, each where one of its depths is positive."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[Kind, ...]:
        """What each part is made of; as many as there are parts."""

    @property
    def codes(self) -> tuple[int, ...]:
        """The part that each depth paints, in the order of painting."""
        return tuple(range(len(self.kinds)))

    @property
    def alike(self) -> tuple[int, ...]:
        """For each part, the one whose look it shares; itself if none."""
        return tuple(range(len(self.kinds)))

    @property
    def middle(self) -> list[float] | None:
        """Where to look for it, if that is one place."""
        return None

    @abstractmethod
    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        """Positive inside, smooth across the surface."""

    def individual(self, draw: Draw) -> Structure:
        """The same in another subject, apart from deformation."""
        return self


@dataclass(frozen=True, eq=False)
class Organ(Structure):
    """A blob: an ellipsoid with a wavy surface; perhaps mirrored, with a shell or a core, or in two parts."""

    centre: Float[Tensor, 3]
    axes: Float[Tensor, "3 3"]
    """Takes an offset from the centre to one whose length is 1 on the surface."""
    wave: Field
    waviness: float
    paired: bool
    layers: tuple[float, ...]
    """Relative radii at which a further part begins, inwards: (0.6,) is a wall around a cavity."""
    made_of: tuple[Kind, ...] = (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN)
    """Of each layer from outside in, as far as there are layers."""
    told_apart: bool = True
    """Whether left and right have numbers of their own."""
    cut: Float[Tensor, 3] | None = None
    """Normal of a plane beyond which the organ is another part that looks the same: known by place alone."""

    @property
    def _parts(self) -> int:
        return 1 + len(self.layers) + (self.cut is not None)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        one = self.made_of[: 1 + len(self.layers)] + ((self.made_of[0],) if self.cut is not None else ())
        return one * (2 if self.paired and self.told_apart else 1)

    @property
    def codes(self) -> tuple[int, ...]:
        first = tuple(range(self._parts))
        second = tuple(range(self._parts, 2 * self._parts)) if self.told_apart else first
        return first + second if self.paired else first

    @property
    def alike(self) -> tuple[int, ...]:
        one = [*range(1 + len(self.layers)), *([0] if self.cut is not None else [])]
        return tuple(one * (2 if self.paired and self.told_apart else 1))

    @property
    def middle(self) -> list[float] | None:
        return [float(value) for value in self.centre.tolist()]

    def depth(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
        """1 at the centre, 0 on the surface, negative outside."""
        radius = torch.linalg.vector_norm((points - self.centre) @ self.axes.T, dim=-1)
        depth: Tensor = 1 - radius + self.waviness * self.wave.at(points)[..., 0]
        return depth

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        found = []
        for side in [points, points * points.new_tensor([-1.0, 1.0, 1.0])] if self.paired else [points]:
            depth = self.depth(side)
            found += [depth, *[depth - (1 - radius) for radius in self.layers]]
            if self.cut is not None:
                found.append(torch.minimum(depth, (side - self.centre) @ self.cut))
        return torch.stack(found, dim=-1)


@dataclass(frozen=True, eq=False)
class Tube(Structure):
    """A vessel, a cord, a bowel loop, a tree of them: everything near t straight pieces of a curve; perhaps hollow."""

    start: Float[Tensor, "t 3"]
    end: Float[Tensor, "t 3"]
    radius: Float[Tensor, "t"]
    hollow: bool
    kind: Kind = Kind.VESSEL
    flat: bool = False
    """A curve that every axial slice shows alike, as a retina does."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (Kind.WALL, Kind.CAVITY) if self.hollow else (self.kind,)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        d = 2 if self.flat else 3
        flat, start, along = points[..., :d].reshape(-1, d), self.start[:, :d], (self.end - self.start)[:, :d]
        length = (along**2).sum(dim=1).clamp_min(1e-8)
        reach = flat @ along.T - (start * along).sum(dim=1)  # how far along each piece, times its length
        share = (reach / length).clamp(0, 1)
        square = (flat**2).sum(dim=1, keepdim=True) - 2 * flat @ start.T + (start**2).sum(dim=1)
        away = (square - share * (2 * reach - share * length)).clamp_min(0).sqrt()
        depth = (self.radius - away).amax(dim=1).reshape(points.shape[:-1])
        return torch.stack([depth, depth - 0.35 * self.radius.amax()][: len(self.kinds)], dim=-1)


@dataclass(frozen=True, eq=False)
class Coat(Structure):
    """A layer along the surface of the body: skin, fat, a skull; with gaps, ribs or a jaw."""

    body: Organ
    outer: float
    inner: float
    kind: Kind
    gaps: Field | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.kind,)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        depth = self.body.depth(points)
        within = torch.minimum(depth - self.outer, self.inner - depth)
        if self.gaps is not None:
            within = torch.minimum(within, 0.1 * self.gaps.at(points)[..., 0])
        return within[..., None]


@dataclass(frozen=True, eq=False)
class Blobs(Structure):
    """Many things of one kind, in other places in every subject: lesions, polyps, nodules, cells with nuclei."""

    centres: Float[Tensor, "m 3"]
    radii: Float[Tensor, "m 3"]
    wave: Field
    waviness: float
    kind: Kind
    core: float | None
    """Relative radius of a nucleus of its own number."""
    fewest: int
    most: int
    size: tuple[float, float]
    around: tuple[float, float, float]
    reach: tuple[float, float, float]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.kind,) if self.core is None else (Kind.WALL, self.kind)

    @property
    def middle(self) -> list[float] | None:
        return list(self.around)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        flat = points.reshape(-1, 3)
        depth = flat.new_full((len(flat),), -1.0)
        if len(self.centres):  # |(p - c) / r|² of all pairs as one product of matrices
            weight = self.radii**-2
            square = (flat**2) @ weight.T - 2 * flat @ (self.centres * weight).T + (self.centres**2 * weight).sum(1)
            depth = 1 - square.amin(dim=1).clamp_min(0).sqrt()
        depth = depth.reshape(points.shape[:-1]) + self.waviness * self.wave.at(points)[..., 0]
        if self.core is None:
            return depth[..., None]
        return torch.stack([depth, depth - (1 - self.core)], dim=-1)

    def individual(self, draw: Draw) -> Blobs:
        count = draw.integer(self.fewest, self.most)
        centres = draw.tensor(self.around) + (2 * draw.uniform(count, 3) - 1) * draw.tensor(self.reach)
        low, high = self.size
        radii = low * (high / low) ** draw.uniform(count, 1) * torch.exp(0.25 * draw.normal(count, 3))
        radii[:, 2] = radii[:, 2].clamp_min(0.25)  # neighbouring slices should show the same ones
        return replace(self, centres=centres, radii=radii)

    @staticmethod
    def random(
        kind: Kind,
        number: tuple[int, int],
        size: tuple[float, float],
        around: tuple[float, float, float],
        reach: tuple[float, float, float],
        draw: Draw,
    ) -> Blobs:
        """`number` and `size` (a radius) say from where to where; centres lie within `reach` of `around`."""
        waviness = draw.between(0.0, 0.35) if kind == Kind.LESION else draw.between(0.0, 0.15)
        core = draw.between(0.4, 0.7) if kind == Kind.CELL and draw.chance(0.3) else None
        wave = Field.random(1, draw.integer(5, 12), draw)
        nothing = draw.normal(0, 3)
        return Blobs(nothing, nothing, wave, waviness, kind, core, *number, size, around, reach).individual(draw)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One random body: tissue regions that fill it, structures drawn over them, and the air outside (label 0)."""

    regions: Field
    structures: tuple[Structure, ...]
    body: Organ | None
    stretch: Float[Tensor, 3] | None = None
    """How much thinner than wide the regions are along x, y, z: layers of skin, fat and muscle."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What each label is made of."""
        inside = [kind for structure in self.structures for kind in structure.kinds]
        return (Kind.AIR, *[Kind.TISSUE] * len(self.regions.values), *inside)

    @property
    def labels(self) -> int:
        """How many labels there are, air included."""
        return len(self.kinds)

    @property
    def alike(self) -> tuple[int, ...]:
        """For each label, the one whose look it shares."""
        found = list(range(1 + len(self.regions.values)))
        for structure in self.structures:
            first = len(found)
            found += [first + other for other in structure.alike]
        return tuple(found)

    def at(self, points: Float[Tensor, "n h w 3"], enlarge: int = 1) -> Int[Tensor, "n a b"]:
        """The label at each point; with `enlarge`, between them too, so many times finer, borders kept smooth."""
        fields, codes = [self.regions.at(points if self.stretch is None else points * self.stretch)], []
        first = 1 + len(self.regions.values)
        for structure in self.structures:
            fields.append(structure.depths(points))
            codes += [first + code for code in structure.codes]
            first += len(structure.kinds)
        if self.body is not None:
            fields.append(-self.body.depth(points)[..., None])
            codes.append(0)
        maps = torch.cat(fields, dim=-1).movedim(-1, 1)
        if enlarge > 1:
            maps = F.interpolate(maps, scale_factor=enlarge, mode="bilinear", align_corners=False)
        regions = len(self.regions.values)
        labels = 1 + maps[:, :regions].argmax(dim=1)
        for place, code in enumerate(codes):
            labels.masked_fill_(maps[:, regions + place] > 0, code)
        return labels

    def individual(self, draw: Draw) -> Anatomy:
        """The body of another subject, apart from deformation: lesions and cells lie elsewhere."""
        return replace(self, structures=tuple(structure.individual(draw) for structure in self.structures))


@dataclass(frozen=True, eq=False)
class Subject:
    """One individual of an anatomy: where its points lie in the anatomy's own space."""

    affine: Float[Tensor, "3 4"]
    warp: Field

    def to_anatomy(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        return points @ self.affine[:, :3].T + self.affine[:, 3] + self.warp.at(points)

    @staticmethod
    def random(draw: Draw, variety: float = 1.0) -> Subject:
        """`variety` 0 is the anatomy itself, 1 individuals as unlike as people are."""
        turn = rotation([draw.gauss(0.2 * variety) for _ in range(3)])
        size = torch.tensor([math.exp(draw.gauss(0.12 * variety)) for _ in range(3)])
        shift = torch.tensor([[draw.gauss(0.08 * variety)] for _ in range(3)])
        broad = Field.random(3, draw.integer(2, 4), draw).values * variety * draw.between(0.0, 0.07)
        fine = Field.random(3, draw.integer(6, 10), draw).values * variety * draw.between(0.0, 0.02)
        return Subject(torch.cat([turn * size, shift], dim=1).to(broad.device), Field(broad + fine))


@dataclass(frozen=True)
class View:
    """From where an anatomy is looked at: the middle of the picture, how much of the cube it shows, and turned how."""

    middle: tuple[float, float, float]
    zoom: float
    """Half the width of the picture; 1 shows the cube."""
    turn: tuple[tuple[float, ...], ...]
    """Rotation, row by row: its first two columns are the picture's x and y, its third is across the slices."""

    def like(self, draw: Draw, amount: float = 1.0) -> View:
        """Another subject laid on the table nearly the same way."""
        tilt = rotation([draw.gauss(0.07 * amount), draw.gauss(0.07 * amount), draw.gauss(0.09 * amount)])
        wander = (0.1 * self.zoom, 0.1 * self.zoom, 0.05 * self.zoom)
        middle = tuple(m + amount * draw.gauss(w) for m, w in zip(self.middle, wander, strict=True))
        turn = torch.tensor(self.turn) @ tilt
        zoom = self.zoom * math.exp(draw.gauss(0.08 * amount))
        return View((middle[0], middle[1], middle[2]), zoom, tuple(map(tuple, turn.tolist())))

    def points(self, side: int, heights: list[float], draw: Draw) -> Float[Tensor, "n side side 3"]:
        """Points of parallel slices at these heights across the view."""
        line = (torch.arange(side, device=draw.generator.device) + 0.5) / side * 2 - 1
        turn = draw.tensor(self.turn)
        plane = self.zoom * (line[None, :, None] * turn[:, 0] + line[:, None, None] * turn[:, 1])
        return plane + (draw.tensor(self.middle) + draw.tensor(heights)[:, None] * turn[:, 2])[:, None, None]


def rotation(angles: list[float]) -> Float[Tensor, "3 3"]:
    """By the length of this vector about it, on the host."""
    x, y, z = angles
    return torch.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def _spline(scale: int) -> Float[Tensor, "g k"]:
    """Weights of uniform cubic B-splines, `scale` intervals wide, at GRID places: smooth to the second derivative."""
    at = torch.linspace(0, scale, GRID)[:, None] - torch.arange(-1, scale + 2)[None]
    r = at.abs()
    inner, outer = (4 - 6 * r**2 + 3 * r**3) / 6, (2 - r).clamp_min(0) ** 3 / 6
    return torch.where(r < 1, inner, outer)
