"""Random synthetic anatomies: organs, layers, tubes, cells and lesions, each defined as a function of space.

An anatomy maps a point of the cube [-1, 1]³ (x, y, z) to the number of the structure there. A subject is that anatomy
under its own affine and smooth deformation, with its own positions of lesions and cells. Nothing is stored on a voxel
grid, so slices of one subject are consistent with each other in any plane and at any resolution.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handful.synthesis.rng import Rng

GRID = 20
"""Grid points of a smooth random field along each axis; structures need no finer detail."""


class Kind(IntEnum):
    """What a structure is made of; modalities choose its brightness by it."""

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


class Shape(IntEnum):
    """What a structure looks like in a slice; worlds balance their targets by it."""

    TISSUE = 0
    """A region that fills the body between structures."""
    BLOB = 1
    RING = 2
    """A layer around something else."""
    TUBE = 3
    PIECES = 4
    """Several objects of one label."""


@dataclass(frozen=True, eq=False)
class Field:
    """c smooth random functions of space, stored as (c, GRID, GRID, GRID) values and interpolated between them."""

    values: Float[Tensor, "c g g g"]

    @staticmethod
    def random(count: int, scale: int, rng: Rng) -> Field:
        """Return `count` fields of mean 0 and standard deviation 1 that vary over about 1 / scale of the cube."""
        weights = _spline(scale).to(rng.generator.device)
        values = torch.einsum("cxyz,ix,jy,kz->cijk", rng.normal(count, *(scale + 3,) * 3), weights, weights, weights)
        spread = values.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
        return Field((values - values.mean(dim=(1, 2, 3), keepdim=True)) / spread)

    def at(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... c"]:
        flat = points.reshape(1, 1, 1, -1, 3)
        sampled = F.grid_sample(self.values[None], flat, padding_mode="reflection", align_corners=True)
        return sampled[0, :, 0, 0].T.reshape(*points.shape[:-1], -1)


class Structure(ABC):
    """One anatomical structure of one or more labelled parts; a part covers the points where its depth is positive."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each part."""

    @property
    def codes(self) -> tuple[int, ...]:
        """The part that each depth belongs to; where depths overlap, the later one counts."""
        return tuple(range(len(self.kinds)))

    @property
    def appearance(self) -> tuple[int, ...]:
        """For each part, the part whose brightness and texture it shares; itself if it shares none."""
        return tuple(range(len(self.kinds)))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each part."""
        return (Shape.BLOB,) * len(self.kinds)

    def shape_of(self, parts: Collection[int]) -> Shape:
        """The shape of some parts together."""
        shapes = {self.shapes[part] for part in parts}
        return shapes.pop() if len(shapes) == 1 else Shape.PIECES

    @property
    def middle(self) -> list[float] | None:
        """Point (x, y, z) that a view can be centred on; None if the structure has no single centre."""
        return None

    @abstractmethod
    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        """Return the depth of each point in each part: positive inside, negative outside, smooth at the surface."""

    def individual(self, rng: Rng) -> Structure:
        """Return the structure of another subject, before deformation."""
        return self


@dataclass(frozen=True, eq=False)
class Organ(Structure):
    """An ellipsoid with a wavy surface: single or a mirrored pair, optionally in layers or cut into two parts."""

    centre: Float[Tensor, 3]
    axes: Float[Tensor, "3 3"]
    """Matrix that maps an offset from the centre to one of length 1 on the surface."""
    wave: Field
    waviness: float
    paired: bool
    layers: tuple[float, ...]
    """Relative radii at which inner layers begin, in descending order: (0.6,) is a wall around a cavity."""
    made_of: tuple[Kind, ...] = (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN)
    """Kind of each layer from the outside in; further entries are ignored."""
    sides_distinct: bool = True
    """Whether the left and the right organ of a pair have different labels."""
    cut: Float[Tensor, 3] | None = None
    """Normal of a plane through the centre; the half beyond it is a part of its own with the same appearance."""

    @property
    def _parts(self) -> int:
        return 1 + len(self.layers) + (self.cut is not None)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        side = self.made_of[: 1 + len(self.layers)] + ((self.made_of[0],) if self.cut is not None else ())
        return side * (2 if self.paired and self.sides_distinct else 1)

    @property
    def codes(self) -> tuple[int, ...]:
        first = tuple(range(self._parts))
        second = tuple(range(self._parts, 2 * self._parts)) if self.sides_distinct else first
        return first + second if self.paired else first

    @property
    def appearance(self) -> tuple[int, ...]:
        side = [*range(1 + len(self.layers)), *([0] if self.cut is not None else [])]
        return tuple(side * (2 if self.paired and self.sides_distinct else 1))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        both = self.paired and not self.sides_distinct
        innermost = Shape.PIECES if both else Shape.BLOB
        side = (Shape.RING,) * len(self.layers) + (innermost,) * (1 + (self.cut is not None))
        return side * (2 if self.paired and self.sides_distinct else 1)

    def shape_of(self, parts: Collection[int]) -> Shape:
        if len({part // self._parts for part in parts}) > 1:  # left and right
            return Shape.PIECES
        layers = {part % self._parts for part in parts}
        filled = layers >= set(range(min(layers), 1 + len(self.layers)))
        return self.shapes[len(self.layers)] if filled else Shape.RING

    @property
    def middle(self) -> list[float] | None:
        return [float(value) for value in self.centre.tolist()]

    def depth(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
        """Return 1 at the centre, 0 on the surface and negative values outside."""
        radius = torch.linalg.vector_norm((points - self.centre) @ self.axes.T, dim=-1)
        depth: Tensor = 1 - radius + self.waviness * self.wave.at(points)[..., 0]
        return depth

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        depths = []
        for side in [points, points * points.new_tensor([-1.0, 1.0, 1.0])] if self.paired else [points]:
            depth = self.depth(side)
            depths += [depth, *[depth - (1 - radius) for radius in self.layers]]
            if self.cut is not None:
                depths.append(torch.minimum(depth, (side - self.centre) @ self.cut))
        return torch.stack(depths, dim=-1)


@dataclass(frozen=True, eq=False)
class Tube(Structure):
    """A vessel, a cord, a bowel loop or a vessel tree: all points near one of t segments; optionally hollow."""

    start: Float[Tensor, "t 3"]
    end: Float[Tensor, "t 3"]
    radius: Float[Tensor, "t"]
    hollow: bool
    kind: Kind = Kind.VESSEL
    flat: bool = False
    """Whether z is ignored, so that every axial slice shows the same curve, as for the vessels of a retina."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (Kind.WALL, Kind.CAVITY) if self.hollow else (self.kind,)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (Shape.TUBE,) * len(self.kinds)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        d = 2 if self.flat else 3
        flat, start, along = points[..., :d].reshape(-1, d), self.start[:, :d], (self.end - self.start)[:, :d]
        length = (along**2).sum(dim=1).clamp_min(1e-8)
        reach = flat @ along.T - (start * along).sum(dim=1)  # position along each segment times its length
        share = (reach / length).clamp(0, 1)
        square = (flat**2).sum(dim=1, keepdim=True) - 2 * flat @ start.T + (start**2).sum(dim=1)
        away = (square - share * (2 * reach - share * length)).clamp_min(0).sqrt()
        depth = (self.radius - away).amax(dim=1).reshape(points.shape[:-1])
        return torch.stack([depth, depth - 0.35 * self.radius.amax()][: len(self.kinds)], dim=-1)


@dataclass(frozen=True, eq=False)
class Coat(Structure):
    """A layer along the surface of the body, such as fat or a skull; with gaps it resembles ribs or a jaw."""

    body: Organ
    outer: float
    inner: float
    kind: Kind
    gaps: Field | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.kind,)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (Shape.RING,)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        depth = self.body.depth(points)
        within = torch.minimum(depth - self.outer, self.inner - depth)
        if self.gaps is not None:
            within = torch.minimum(within, 0.1 * self.gaps.at(points)[..., 0])
        return within[..., None]


@dataclass(frozen=True, eq=False)
class Blobs(Structure):
    """Many objects of one kind whose positions differ between subjects: lesions, polyps, nodules, cells with nuclei."""

    centres: Float[Tensor, "m 3"]
    radii: Float[Tensor, "m 3"]
    wave: Field
    waviness: float
    kind: Kind
    core: float | None
    """Relative radius of a nucleus, which is a part of its own; None: no nucleus."""
    fewest: int
    most: int
    size: tuple[float, float]
    around: tuple[float, float, float]
    reach: tuple[float, float, float]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.kind,) if self.core is None else (Kind.WALL, self.kind)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (Shape.PIECES if self.most > 3 else Shape.BLOB,) * len(self.kinds)

    @property
    def middle(self) -> list[float] | None:
        return list(self.around)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        flat = points.reshape(-1, 3)
        depth = flat.new_full((len(flat),), -1.0)
        if len(self.centres):  # |(p - c) / r|² of all pairs by matrix products
            weight = self.radii**-2
            square = (flat**2) @ weight.T - 2 * flat @ (self.centres * weight).T + (self.centres**2 * weight).sum(1)
            depth = 1 - square.amin(dim=1).clamp_min(0).sqrt()
        depth = depth.reshape(points.shape[:-1]) + self.waviness * self.wave.at(points)[..., 0]
        if self.core is None:
            return depth[..., None]
        return torch.stack([depth, depth - (1 - self.core)], dim=-1)

    def individual(self, rng: Rng) -> Blobs:
        count = rng.integer(self.fewest, self.most)
        centres = rng.tensor(self.around) + (2 * rng.uniform(count, 3) - 1) * rng.tensor(self.reach)
        low, high = self.size
        radii = low * (high / low) ** rng.uniform(count, 1) * torch.exp(0.25 * rng.normal(count, 3))
        radii[:, 2] = radii[:, 2].clamp_min(0.25)  # so that neighbouring slices show the same objects
        return replace(self, centres=centres, radii=radii)

    @staticmethod
    def random(
        kind: Kind,
        number: tuple[int, int],
        size: tuple[float, float],
        around: tuple[float, float, float],
        reach: tuple[float, float, float],
        rng: Rng,
    ) -> Blobs:
        """Return random blobs; `number` and `size` (a radius) are ranges, centres lie within `reach` of `around`."""
        waviness = rng.between(0.0, 0.35) if kind == Kind.LESION else rng.between(0.0, 0.15)
        core = rng.between(0.4, 0.7) if kind == Kind.CELL and rng.chance(0.3) else None
        wave = Field.random(1, rng.integer(5, 12), rng)
        nothing = rng.normal(0, 3)
        return Blobs(nothing, nothing, wave, waviness, kind, core, *number, size, around, reach).individual(rng)


@dataclass(frozen=True, eq=False)
class Row(Blobs):
    """Objects of one kind in fixed places, such as vertebrae or teeth: all subjects have the same ones."""

    def individual(self, rng: Rng) -> Row:
        return self


@dataclass(frozen=True, eq=False)
class Lacking(Structure):
    """A structure that one subject lacks; its labels stay reserved, so that all subjects have the same numbers."""

    structure: Structure

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self.structure.kinds

    @property
    def codes(self) -> tuple[int, ...]:
        return self.structure.codes

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.structure.shapes

    def shape_of(self, parts: Collection[int]) -> Shape:
        return self.structure.shape_of(parts)

    def depths(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... d"]:
        return points.new_full((*points.shape[:-1], len(self.codes)), -1.0)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One random body: tissue regions that fill it, structures that cover them, and the air outside (label 0)."""

    regions: Field
    structures: tuple[Structure, ...]
    body: Organ | None
    stretch: Float[Tensor, 3] | None = None
    """Factor by which the regions are compressed along x, y, z, which makes layers such as skin, fat and muscle."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each label, air included."""
        inside = [kind for structure in self.structures for kind in structure.kinds]
        return (Kind.AIR, *[Kind.TISSUE] * len(self.regions.values), *inside)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each label, air included."""
        inside = [shape for structure in self.structures for shape in structure.shapes]
        return (*[Shape.TISSUE] * (1 + len(self.regions.values)), *inside)

    def shape_of(self, labels: Collection[int]) -> Shape:
        """The shape of some labels together: a wall with its cavity is a blob, a left and a right organ are pieces."""
        first, found = 1 + len(self.regions.values), []
        if min(labels) < first:
            return Shape.TISSUE
        for structure in self.structures:
            parts = [label - first for label in labels if first <= label < first + len(structure.kinds)]
            found += [structure.shape_of(parts)] if parts else []
            first += len(structure.kinds)
        return found[0] if len(found) == 1 or set(found) == {Shape.TUBE} else Shape.PIECES

    @property
    def wholes(self) -> tuple[tuple[int, ...], ...]:
        """The labels of each structure that has more than one."""
        first, wholes = 1 + len(self.regions.values), []
        for structure in self.structures:
            count = len(structure.kinds)
            wholes += [tuple(range(first, first + count))] if count > 1 else []
            first += count
        return tuple(wholes)

    @property
    def labels(self) -> int:
        """Number of labels, air included."""
        return len(self.kinds)

    @property
    def appearance(self) -> tuple[int, ...]:
        """For each label, the label whose brightness and texture it shares; itself if it shares none."""
        labels = list(range(1 + len(self.regions.values)))
        for structure in self.structures:
            first = len(labels)
            labels += [first + part for part in structure.appearance]
        return tuple(labels)

    def at(self, points: Float[Tensor, "n h w 3"], enlarge: int = 1) -> Int[Tensor, "n a b"]:
        """Return the label at each point.

        With `enlarge` above 1, the map is that many times finer; depths are interpolated, so borders stay smooth.
        """
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

    def individual(self, rng: Rng) -> Anatomy:
        """Return the body of another subject before deformation: lesions and cells have other positions."""
        return replace(self, structures=tuple(structure.individual(rng) for structure in self.structures))

    def lacking(self, share: float, rng: Rng) -> Anatomy:
        """Return the body without some structures, each left out with probability `share`."""
        return replace(self, structures=tuple(Lacking(one) if rng.chance(share) else one for one in self.structures))


@dataclass(frozen=True, eq=False)
class Subject:
    """One individual of an anatomy: the transform from its space to the space of the anatomy."""

    affine: Float[Tensor, "3 4"]
    warp: Field

    def to_anatomy(self, points: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        return points @ self.affine[:, :3].T + self.affine[:, 3] + self.warp.at(points)

    @staticmethod
    def random(rng: Rng, variety: float = 1.0) -> Subject:
        """Return a random subject; with `variety` 0 it is the anatomy itself, with 1 it differs as people do."""
        turn = rotation([rng.gauss(0.2 * variety) for _ in range(3)])
        size = torch.tensor([math.exp(rng.gauss(0.12 * variety)) for _ in range(3)])
        shift = torch.tensor([[rng.gauss(0.08 * variety)] for _ in range(3)])
        broad = Field.random(3, rng.integer(2, 4), rng).values * variety * rng.between(0.0, 0.07)
        fine = Field.random(3, rng.integer(6, 10), rng).values * variety * rng.between(0.0, 0.02)
        return Subject(torch.cat([turn * size, shift], dim=1).to(broad.device), Field(broad + fine))


@dataclass(frozen=True)
class View:
    """The section of an anatomy that a picture shows: its centre, size and orientation."""

    middle: tuple[float, float, float]
    zoom: float
    """Half the width of the picture; 1 shows the whole cube."""
    turn: tuple[tuple[float, ...], ...]
    """Rotation matrix, row by row: its columns are the picture's x and y and the direction across the slices."""

    def like(self, rng: Rng, amount: float = 1.0) -> View:
        """Return nearly the same view, as of another subject positioned in the same way."""
        tilt = rotation([rng.gauss(0.07 * amount), rng.gauss(0.07 * amount), rng.gauss(0.09 * amount)])
        wander = (0.1 * self.zoom, 0.1 * self.zoom, 0.05 * self.zoom)
        middle = tuple(m + amount * rng.gauss(w) for m, w in zip(self.middle, wander, strict=True))
        turn = torch.tensor(self.turn) @ tilt
        zoom = self.zoom * math.exp(rng.gauss(0.08 * amount))
        return View((middle[0], middle[1], middle[2]), zoom, tuple(map(tuple, turn.tolist())))

    def points(self, side: int, heights: list[float], rng: Rng) -> Float[Tensor, "n side side 3"]:
        """Return the pixel centres of parallel slices at these heights, in the space of the subject."""
        line = (torch.arange(side, device=rng.generator.device) + 0.5) / side * 2 - 1
        turn = rng.tensor(self.turn)
        plane = self.zoom * (line[None, :, None] * turn[:, 0] + line[:, None, None] * turn[:, 1])
        return plane + (rng.tensor(self.middle) + rng.tensor(heights)[:, None] * turn[:, 2])[:, None, None]


def rotation(angles: list[float]) -> Float[Tensor, "3 3"]:
    """Return the rotation about this vector by its length in radians, on the CPU."""
    x, y, z = angles
    return torch.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def _spline(scale: int) -> Float[Tensor, "g k"]:
    """Return weights of uniform cubic B-splines with `scale` intervals at GRID places."""
    at = torch.linspace(0, scale, GRID)[:, None] - torch.arange(-1, scale + 2)[None]
    r = at.abs()
    inner, outer = (4 - 6 * r**2 + 3 * r**3) / 6, (2 - r).clamp_min(0) ** 3 / 6
    return torch.where(r < 1, inner, outer)
