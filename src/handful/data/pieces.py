"""The connected pieces of labels, and labels that consist of one piece. Voxels that share a corner are connected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.label_values import boxes_of_values
from handful.jobs.scratch import BLOCK, blocks, converted, paired_blocks, slowest_first, zeros

ONE_PIECE = 0.97
"""Fraction of a label's voxels in its largest piece, from which on the label counts as one piece."""


def numbered_pieces(inside: Bool[np.ndarray, "..."]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The number of each voxel's piece, from 1 (0 outside the mask), and the number of voxels of each piece."""
    if not inside.flags.c_contiguous:  # the numbers depend on the memory order
        stored, inside = inside, zeros(inside.shape, bool)
        inside[...] = stored
    pieces = zeros(inside.shape, np.int32)
    count = ndimage.label(inside, np.ones((3,) * inside.ndim), output=pieces)
    sizes = np.zeros(count + 1, np.int64)
    for block in blocks(pieces):
        sizes += np.bincount(block.ravel(), minlength=count + 1)
    return pieces, sizes[1:]


def keep_largest_pieces(classes: Integer[np.ndarray, "..."], values: Iterable[int], *, per_slice: bool = False) -> None:
    """Set all but the largest piece of each of these values to 0, in place; of equal pieces, the first is kept.

    `per_slice`: the first axis counts slices, and the largest piece of each slice is kept.
    """
    for part in classes if per_slice else [classes]:
        for value, box in _boxes(part, values):
            pieces, sizes = numbered_pieces(_voxels_of(part[box], value))
            if len(sizes) > 1:
                for block, numbers in paired_blocks(part[box], pieces):
                    block[(numbers > 0) & (numbers != 1 + int(sizes.argmax()))] = 0


def keep_main_pieces(classes: Integer[np.ndarray, "..."], values: Iterable[int], share: float) -> None:
    """Set all pieces to 0, in place, that have less than this share of the voxels of the largest one of their label."""
    for value, box in _boxes(classes, values):
        pieces, sizes = numbered_pieces(_voxels_of(classes[box], value))
        small = np.flatnonzero(sizes < share * sizes.max()) + 1
        if small.size:
            for block, numbers in paired_blocks(classes[box], pieces):
                block[np.isin(numbers, small)] = 0


def shares_in_largest_piece(
    classes: Integer[np.ndarray, "..."], values: Iterable[int], *, per_slice: bool = False
) -> dict[int, float]:
    """{value: fraction of its voxels in its largest piece}, of those values that occur; for `per_slice` as above."""
    total, largest = dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    for part in classes if per_slice else [classes]:
        for value, box in _boxes(part, total):
            _, sizes = numbered_pieces(_voxels_of(part[box], value))
            total[value] += int(sizes.sum())
            largest[value] += int(sizes.max())
    return {value: largest[value] / count for value, count in total.items() if count}


def _voxels_of(classes: Integer[np.ndarray, "..."], value: int) -> NDArray[np.bool_]:
    return converted(classes, bool, lambda block: block == value)


def _boxes(classes: Integer[np.ndarray, "..."], values: Iterable[int]) -> list[tuple[int, tuple[slice, ...]]]:
    """The values that occur, each with the smallest box that contains it."""
    axis = slowest_first(classes)[0]
    slices = np.moveaxis(classes, axis, 0)
    step = max(1, BLOCK * len(slices) // max(1, classes.nbytes))
    found: dict[int, tuple[slice, ...]] = {}
    for start in range(0, len(slices), step):
        part = np.moveaxis(slices[start : start + step], 0, axis)
        for value, box in boxes_of_values(part).items():
            moved = slice(box[axis].start + start, box[axis].stop + start)
            placed = (*box[:axis], moved, *box[axis + 1 :])
            found[value] = _joined(found[value], placed) if value in found else placed
    return [(value, found[value]) for value in values if value in found]


def _joined(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    pairs = zip(first, second, strict=True)
    return tuple(slice(min(one.start, other.start), max(one.stop, other.stop)) for one, other in pairs)
