"""The connected pieces of labels, and labels that consist of one piece. Voxels that share a corner are connected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.label_values import boxes_of_values

ONE_PIECE = 0.97
"""Fraction of a label's voxels in its largest piece, from which on the label counts as one piece."""


def numbered_pieces(inside: Bool[np.ndarray, "..."]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The number of each voxel's piece, from 1 (0 outside the mask), and the number of voxels of each piece."""
    pieces, _ = ndimage.label(np.ascontiguousarray(inside), np.ones((3,) * inside.ndim))
    return pieces, np.bincount(pieces.ravel())[1:]


def keep_largest_pieces(classes: Integer[np.ndarray, "..."], values: Iterable[int], *, per_slice: bool = False) -> None:
    """Set all but the largest piece of each of these values to 0, in place; of equal pieces, the first is kept.

    `per_slice`: the first axis counts slices, and the largest piece of each slice is kept.
    """
    for part in classes if per_slice else [classes]:
        for value, box in _boxes(part, values):
            pieces, sizes = numbered_pieces(part[box] == value)
            if len(sizes) > 1:
                part[box][(pieces > 0) & (pieces != 1 + int(sizes.argmax()))] = 0


def keep_main_pieces(classes: Integer[np.ndarray, "..."], values: Iterable[int], share: float) -> None:
    """Set all pieces to 0, in place, that have less than this share of the voxels of the largest one of their label."""
    for value, box in _boxes(classes, values):
        pieces, sizes = numbered_pieces(classes[box] == value)
        small = np.flatnonzero(sizes < share * sizes.max()) + 1
        if small.size:
            classes[box][np.isin(pieces, small)] = 0


def shares_in_largest_piece(
    classes: Integer[np.ndarray, "..."], values: Iterable[int], *, per_slice: bool = False
) -> dict[int, float]:
    """{value: fraction of its voxels in its largest piece}, of those values that occur; for `per_slice` as above."""
    total, largest = dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    for part in classes if per_slice else [classes]:
        for value, box in _boxes(part, total):
            _, sizes = numbered_pieces(part[box] == value)
            total[value] += int(sizes.sum())
            largest[value] += int(sizes.max())
    return {value: largest[value] / count for value, count in total.items() if count}


def _boxes(classes: Integer[np.ndarray, "..."], values: Iterable[int]) -> list[tuple[int, tuple[slice, ...]]]:
    """The values that occur, each with the smallest box that contains it."""
    boxes = boxes_of_values(classes)
    return [(value, boxes[value]) for value in values if value in boxes]
