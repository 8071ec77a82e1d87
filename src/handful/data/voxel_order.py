"""Voxels that are stored in another order than those of their scan, as some programs save them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.volume import Geometry, LabelMap


def in_order_of(label_map: LabelMap, geometry: Geometry) -> LabelMap:
    """The label map with its axes in the order and direction of another grid of the same voxels, see `turned`."""
    array, own = turned(label_map.array, label_map.geometry, geometry)
    return label_map if own is label_map.geometry else LabelMap(array, own, label_map.labels)


def turned(array: NDArray[Any], own: Geometry, geometry: Geometry) -> tuple[NDArray[Any], Geometry]:
    """An array (i, j, k) on the grid `own`, and that grid, in the order and direction of another grid of its voxels.

    Both are as they were if the grids have other voxels, or already the same order. No voxel is interpolated.
    """
    turn = np.linalg.inv(own.affine[:3, :3]) @ geometry.affine[:3, :3]
    axes = np.abs(turn).argmax(axis=0)
    if sorted(axes) != [0, 1, 2] or np.abs(np.abs(turn[axes, range(3)]) - 1).max() > 0.01:
        return array, own
    signs = np.sign(turn[axes, range(3)]).astype(int)
    found = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    if found.shape != geometry.shape or (list(axes) == [0, 1, 2] and (signs > 0).all()):
        return array, own
    first = np.where(signs > 0, 0, np.array(found.shape) - 1)[np.argsort(axes)]
    affine = own.affine.copy()
    affine[:3, :3] = own.affine[:3, axes] * signs
    affine[:3, 3] = (own.affine @ [*first, 1])[:3]
    grid = Geometry(geometry.shape, affine, unit=own.unit)
    if geometry.corner_distance(grid) > geometry.spacing.min() / 2:
        return array, own
    return np.ascontiguousarray(found), grid
