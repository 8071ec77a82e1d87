"""Label maps whose voxels are stored in another order than those of their scan, as some viewers save them."""

from __future__ import annotations

import numpy as np

from handful.data.volume import Geometry, LabelMap


def in_order_of(label_map: LabelMap, geometry: Geometry) -> LabelMap:
    """The label map with its axes in the order and direction of another grid of the same voxels.

    Unchanged if the grids have other voxels, or already the same order. No voxel is interpolated.
    """
    turn = np.linalg.inv(label_map.geometry.affine[:3, :3]) @ geometry.affine[:3, :3]
    axes = np.abs(turn).argmax(axis=0)
    if sorted(axes) != [0, 1, 2] or np.abs(np.abs(turn[axes, range(3)]) - 1).max() > 0.01:
        return label_map
    signs = np.sign(turn[axes, range(3)]).astype(int)
    array = label_map.array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    if array.shape != geometry.shape or (list(axes) == [0, 1, 2] and (signs > 0).all()):
        return label_map
    first = np.where(signs > 0, 0, np.array(array.shape) - 1)[np.argsort(axes)]
    affine = label_map.geometry.affine.copy()
    affine[:3, :3] = label_map.geometry.affine[:3, axes] * signs
    affine[:3, 3] = (label_map.geometry.affine @ [*first, 1])[:3]
    turned = Geometry(geometry.shape, affine, unit=label_map.geometry.unit)
    if geometry.corner_distance(turned) > geometry.spacing.min() / 2:
        return label_map
    return LabelMap(np.ascontiguousarray(array), turned, label_map.labels)
