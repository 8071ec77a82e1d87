"""A voxel grid as a stack of slices: their number, their size, and their position in the stored array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from handful.data.volume import Geometry, LabelMap, Volume
from handful.errors import GeometryMismatch
from handful.jobs.scratch import zeros_like

Plane = Literal["axial", "coronal", "sagittal"]
Block = tuple[slice, slice, slice]
"""A box of voxels, as ranges along the axes i, j, k of the stored array."""

ORDER: dict[Plane, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Axes of the slices, rows and columns of a plane, among the anatomical axes (left, posterior, inferior)."""


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """A voxel grid as n slices of h rows and w columns; holds no voxels."""

    geometry: Geometry
    plane: Plane

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self._shape[1:]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between slices, rows and columns, in the unit of the geometry."""
        between, row, column = (float(self.geometry.spacing[axis]) for axis in self._stored_axes)
        return between, row, column

    @property
    def axis(self) -> int:
        """The axis of the stored array (0, 1 or 2) that counts the slices."""
        return self._stored_axes[0]

    def of(self, array_ijk: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (i, j, k) as slices (n, h, w). Writing into the view writes into the array."""
        if array_ijk.shape != self.geometry.shape:
            raise GeometryMismatch(
                f"array of shape {array_ijk.shape} on a {self.geometry.shape} grid; give one of that shape"
            )
        stacked = array_ijk.transpose(self._stored_axes)
        return stacked[tuple(slice(None, None, -1 if flipped else 1) for flipped in self._flips)]

    def index_in_array(self, number: int) -> int:
        """The index along `axis` of the slice with this number."""
        return len(self) - 1 - number if self._flips[0] else number

    def place_of(self, voxel: tuple[int, int, int]) -> tuple[int, int, int]:
        """Number of the slice, row and column of a voxel (i, j, k) of the stored array."""
        places = [
            self._shape[place] - 1 - voxel[axis] if self._flips[place] else voxel[axis]
            for place, axis in enumerate(self._stored_axes)
        ]
        return places[0], places[1], places[2]

    def voxel_of(self, number: int, row: float, column: float) -> tuple[float, float, float]:
        """The indices i, j, k in the stored array of a place in a slice; the inverse of `place_of`."""
        indices = [0.0, 0.0, 0.0]
        for place, (axis, at) in enumerate(zip(self._stored_axes, (number, row, column), strict=True)):
            indices[axis] = self._shape[place] - 1 - at if self._flips[place] else at
        return indices[0], indices[1], indices[2]

    def block(self, rows: tuple[int, int], columns: tuple[int, int]) -> Block:
        """The voxels of a window in all slices; `rows` and `columns` are (start, stop), without the stop."""
        ranges = [slice(0, 0)] * 3
        bounds = ((0, len(self)), rows, columns)
        for place, (axis, (start, stop)) in enumerate(zip(self._stored_axes, bounds, strict=True)):
            length = self._shape[place]
            ranges[axis] = slice(length - stop, length - start) if self._flips[place] else slice(start, stop)
        i, j, k = ranges
        return i, j, k

    def window(self, block: Block) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of a block of voxels in the slices, each as (start, stop), without the stop."""
        bounds = []
        for place in (1, 2):
            part, length = block[self._stored_axes[place]], self._shape[place]
            edges = (length - part.stop, length - part.start) if self._flips[place] else (part.start, part.stop)
            bounds.append((int(edges[0]), int(edges[1])))
        return bounds[0], bounds[1]

    @cached_property
    def _stored_axes(self) -> tuple[int, int, int]:
        """The array axes that count slices, rows and columns."""
        axes = anatomical_axes(self.geometry)
        slices, rows, columns = (axes[axis] for axis in ORDER[self.plane])
        return slices, rows, columns

    @property
    def _shape(self) -> tuple[int, int, int]:
        n, h, w = (self.geometry.shape[axis] for axis in self._stored_axes)
        return n, h, w

    @cached_property
    def _flips(self) -> tuple[bool, bool, bool]:
        """Whether slices, rows and columns run opposite to the stored array."""
        towards = _towards(self.geometry)
        n, h, w = (bool(towards[axis] > 0) for axis in self._stored_axes)
        return n, h, w


def best_plane(geometry: Geometry) -> Plane:
    """The plane whose slices have the finest pixels: perpendicular to the one axis with the largest spacing.

    If no axis is at least 10 % coarser than both others, the plane is axial: a planning CT of 4.6 x 4.6 x 3 mm has two
    coarse axes and stays axial, so that left and right are in the same slice. A grid of one slice keeps its own plane.
    """
    axes = anatomical_axes(geometry)
    planes: dict[int, Plane] = {2: "axial", 1: "coronal", 0: "sagittal"}
    thin = [axis for axis in planes if geometry.shape[axes[axis]] == 1]
    if len(thin) == 1:
        return planes[thin[0]]
    spacing = geometry.spacing[axes]
    coarsest, second = np.sort(spacing)[::-1][:2]
    return planes[int(spacing.argmax()) if coarsest > 1.1 * second else 2]


def anatomical(array: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A view of an array (i, j, k) whose axes run to the patient's left, back and feet."""
    if array.shape != geometry.shape:
        raise GeometryMismatch(f"array of shape {array.shape} on a {geometry.shape} grid; give one of that shape")
    flips = tuple(slice(None, None, -1 if direction > 0 else 1) for direction in _towards(geometry))
    return array[flips].transpose(anatomical_axes(geometry))


def anatomical_axes(geometry: Geometry) -> list[int]:
    """The array axes that are nearest to the patient's left-right, front-back and head-foot axes."""
    orientation = nib.orientations.io_orientation(geometry.affine)
    return [int(axis) for axis in np.argsort(orientation[:, 0])]


def _towards(geometry: Geometry) -> NDArray[np.float64]:
    """1 for each array axis that runs right, front or up, -1 for one that runs left, back or down."""
    towards: NDArray[np.float64] = nib.orientations.io_orientation(geometry.affine)[:, 1]
    return towards


def cropped_volume(volume: Volume, block: Block) -> Volume:
    """The volume cropped to a block of voxels, at the same world coordinates."""
    part = volume.array[(slice(None), *block)]
    array = volume.array
    if part.shape != array.shape:
        array = zeros_like(part, part.dtype)
        array[...] = part
    return replace(volume, array=array, geometry=_cropped(volume.geometry, block))


def cropped_label_map(label_map: LabelMap, block: Block) -> LabelMap:
    """The label map cropped to a block of voxels, at the same world coordinates."""
    part = label_map.array[block]
    array = label_map.array if part.shape == label_map.array.shape else part.copy()  # a view would keep the whole map
    return replace(label_map, array=array, geometry=_cropped(label_map.geometry, block))


def _cropped(geometry: Geometry, block: Block) -> Geometry:
    affine = geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in block]
    i, j, k = (part.stop - part.start for part in block)
    return replace(geometry, shape=(i, j, k), affine=affine)


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced from the first to the last one."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
    return chosen
