"""Windows in the slices of a scan: their position, their size, and the labels on their rim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from handful.data.slice_grid import Block, SliceGrid
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportFacts
from handful.data.volume import LabelMap
from handful.errors import SettingsError

OUTLIERS = 0.02
"""Fraction of a mass that is ignored on each side when a window is centred on it."""
MOST = 0.995
"""Windows with at least this fraction of the largest mass are equally good; the one in their middle is taken."""
CENTRINGS = 3
"""How often a window is centred on the mass that it holds."""
CONTRADICTION = 1.5
"""If the sizes of labelled regions vary this many times more in mm than as fractions of their slices, the pixel sizes
are not used."""
FARTHEST = 1e6
"""Upper limit of the side of a window in a file, in mm or as a fraction of the slice."""
RIM_WIDTH = 0.02
"""Width of the rim of a window as a fraction of its side; at least one pixel."""


@dataclass(frozen=True)
class Region:
    """A rectangle in all slices of a grid, in pixels: rows `top` to `bottom`, columns `left` to `right`."""

    grid: SliceGrid
    top: float
    left: float
    bottom: float
    right: float

    @property
    def sides(self) -> tuple[float, float]:
        """Height and width in pixels."""
        return self.bottom - self.top, self.right - self.left

    @property
    def middle(self) -> tuple[float, float]:
        """Row and column of the centre."""
        return (self.top + self.bottom) / 2, (self.left + self.right) / 2

    @property
    def block(self) -> Block:
        """The region in all slices, as ranges of voxels i, j, k."""
        rows, columns = (int(self.top), int(self.bottom)), (int(self.left), int(self.right))
        return self.grid.block(rows, columns)

    def holds(self, other: Region) -> bool:
        """Whether all of the other region lies within this one."""
        return (
            self.top <= other.top
            and self.left <= other.left
            and other.bottom <= self.bottom
            and other.right <= self.right
        )

    def widened(self, predicted: Region, by: float) -> Region:
        """This window, extended by a fraction of its sides wherever the predicted region reaches its rim."""
        down, across = self.rim
        more, (height, width) = [math.ceil(by * side) for side in self.sides], self.grid.size
        return Region(
            self.grid,
            max(0, self.top - more[0]) if predicted.top < self.top + down else self.top,
            max(0, self.left - more[1]) if predicted.left < self.left + across else self.left,
            min(height, self.bottom + more[0]) if predicted.bottom > self.bottom - down else self.bottom,
            min(width, self.right + more[1]) if predicted.right > self.right - across else self.right,
        )

    def joined(self, other: Region) -> Region:
        """The smallest region that holds both."""
        return Region(
            self.grid,
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    @property
    def rim(self) -> tuple[int, int]:
        """Height of the rows and width of the columns that count as the rim of a window, in pixels."""
        down, across = (max(1, round(RIM_WIDTH * side)) for side in self.sides)
        return down, across


@dataclass(frozen=True)
class Windows:
    """The size of windows, and their default position."""

    world: float
    """Side in mm, for scans with a known pixel size."""
    share: float
    """Side as a fraction of the longer side of the slice, for pictures."""
    down: float
    """Mean row of the centres of the labelled regions, as a fraction of the slice's height."""
    across: float
    """Mean column of the centres of the labelled regions, as a fraction of the slice's width."""
    in_mm: bool = True
    """Whether the side in mm is used at all; False where the pixel sizes contradict the labelled regions."""

    @classmethod
    def of(cls, regions: Sequence[Region], margin: float) -> Windows:
        """Windows that are `margin` times as large as the largest of the labelled regions."""
        world, share, middles = [], [], []
        for region in regions:
            _, row, column = region.grid.spacing
            world.append(max(region.sides[0] * row, region.sides[1] * column))
            share.append(max(region.sides) / max(region.grid.size))
            middles.append(np.divide(region.middle, region.grid.size))
        down, across = np.mean(middles, axis=0).tolist()
        # an organ has about the same size in all patients, unless the pixel sizes in the headers are wrong
        in_mm = _spread(world) <= CONTRADICTION * _spread(share)
        return cls(margin * max(world), margin * max(share), down, across, in_mm)

    @classmethod
    def unpack(cls, numbers: Sequence[float]) -> Windows:
        """Windows from these five numbers of a file. Raises SettingsError if they are out of range."""
        world, share, down, across, in_mm = numbers
        if not (0 < world < FARTHEST and 0 < share < FARTHEST and down <= 1 and across <= 1 and in_mm in (0, 1)):
            raise SettingsError(f"the windows {tuple(numbers)} are out of range")
        return cls(world, share, down, across, bool(in_mm))

    def around(self, region: Region) -> Region:
        """The window around the centre of a region, in whole pixels of the slice."""
        return self._at(region.grid, region.middle)

    def of_case(self, facts: SupportFacts, slicer: Slicer) -> Region:
        """The window of a labelled case: around its labels, or in the default position if it has none."""
        region = labelled_region(facts, slicer)
        return self.around(region) if region else self._in_default_position(slicer.grid(facts.geometry))

    def around_mass(self, grid: SliceGrid, mass: Float[np.ndarray[Any, Any], "h w"]) -> Region:
        """The window with the most of a mass that lies over the slices, on a grid of its own, centred on what it holds.

        Without any mass, the window has its default position.
        """
        if not mass.any():
            return self._in_default_position(grid)
        scale = np.divide(mass.shape, grid.size)
        sides = np.clip((self.sides(grid) * scale).round().astype(int), 1, mass.shape)
        held = _sums_of_windows(mass, sides)
        best = np.argwhere(held >= MOST * held.max())
        corner = best[np.linalg.norm(best - best.mean(axis=0), axis=1).argmin()]
        for _ in range(CENTRINGS):
            part = mass[corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]]
            middle = np.add(corner, [_middle(part.sum(axis=1)), _middle(part.sum(axis=0))])
            corner = np.clip((middle - sides / 2).round().astype(int), 0, mass.shape - sides)
        down, across = (middle / scale).tolist()
        return self._at(grid, (down, across))

    def sides(self, grid: SliceGrid) -> tuple[int, int]:
        """Height and width of the standard window in pixels, at most those of the slice."""
        _, row, column = grid.spacing
        in_mm = self.in_mm and grid.geometry.unit == "mm"
        height, width = (
            min(length, max(1, round(self.world / edge if in_mm else self.share * max(grid.size))))
            for edge, length in zip((row, column), grid.size, strict=True)
        )
        return height, width

    def _in_default_position(self, grid: SliceGrid) -> Region:
        return self._at(grid, (self.down * grid.size[0], self.across * grid.size[1]))

    def _at(self, grid: SliceGrid, middle: tuple[float, float]) -> Region:
        edges = []
        for place, side, length in zip(middle, self.sides(grid), grid.size, strict=True):
            start = min(max(0, round(place - side / 2)), length - side)
            edges.append((start, start + side))
        (top, bottom), (left, right) = edges
        return Region(grid, top, left, bottom, right)


def labelled_region(facts: SupportFacts, slicer: Slicer) -> Region | None:
    """The extent of all labels of a case; None if it has none."""
    if facts.extent is None:
        return None
    grid = slicer.grid(facts.geometry)
    rows, columns = grid.window(facts.extent)
    return Region(grid, rows[0], columns[0], rows[1], columns[1])


def labelled_regions(cases: Sequence[SupportFacts], slicer: Slicer) -> list[Region]:
    """The extents of all labels, of the cases that have any; if none has, the whole slices."""
    regions = [labelled_region(facts, slicer) for facts in cases]
    grids = [slicer.grid(facts.geometry) for facts in cases]
    return [region for region in regions if region] or [Region(grid, 0, 0, *grid.size) for grid in grids]


def region_of(stack: SliceView, label_map: LabelMap) -> Region | None:
    """The extent of all labels of a label map; None if it is empty."""
    footprint = _footprint(stack, label_map) > 0
    rows, columns = np.flatnonzero(footprint.any(axis=1)), np.flatnonzero(footprint.any(axis=0))
    if not rows.size:
        return None
    return Region(stack.grid, int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def share_on_rim(stack: SliceView, label_map: LabelMap, window: Region) -> float:
    """Fraction of the labelled voxels on the rim of the window; edges of the slice itself do not count as rim."""
    footprint = _footprint(stack, label_map)
    total = int(footprint.sum())
    if not total:
        return 0.0
    top, left, bottom, right = (int(edge) for edge in (window.top, window.left, window.bottom, window.right))
    (down, across), (height, width) = window.rim, stack.size
    core = footprint[
        top + down * (top > 0) : bottom - down * (bottom < height),
        left + across * (left > 0) : right - across * (right < width),
    ]
    return 1.0 - int(core.sum()) / total


def _footprint(stack: SliceView, label_map: LabelMap) -> NDArray[np.int64]:
    """Number of slices with a label at each row and column."""
    counts = np.zeros(stack.size, np.int64)
    for classes in stack.of(label_map.array):
        counts += classes > 0
    return counts


def _spread(sizes: Sequence[float]) -> float:
    return max(sizes) / max(min(sizes), 1e-6)


def _sums_of_windows(mass: Float[np.ndarray[Any, Any], "h w"], sides: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of the mass in each window of these sides, by its upper left corner."""
    height, width = sides
    sums = np.pad(mass.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = sums[height:] - sums[:-height]
    held: NDArray[np.float64] = rows[:, width:] - rows[:, :-width]
    return held


def _middle(profile: NDArray[np.floating]) -> float:
    """The middle of the extent of a mass along one axis, ignoring outliers."""
    share = profile.cumsum() / profile.sum()
    return float(np.searchsorted(share, OUTLIERS) + np.searchsorted(share, 1 - OUTLIERS) + 1) / 2
