"""The connected pieces of labels, and labels that consist of one piece. Voxels that share a corner are connected."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.label_values import boxes_of_values
from handful.jobs.scratch import BLOCK, blocks, converted, paired_blocks, slowest_first, zeros

ONE_PIECE = 0.97
"""Fraction of a label's voxels in its largest piece, from which on the label counts as one piece."""
NEXT_TO = 0.05
"""Fraction of the voxels around a label that another one must have, from which on the two count as touching."""
LEAST_TOUCHING = 0.1
"""Size of a piece that touches, as a fraction of the largest one, from which on it is preferred to that."""
MOST_TRIED = 10
"""Largest number of pieces of a label of which it is tried whether they touch; noise has thousands."""


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


def keep_largest_pieces(
    classes: Integer[np.ndarray, "..."],
    values: Iterable[int],
    touching: Mapping[int, Collection[int]] | None = None,
    *,
    per_slice: bool = False,
) -> None:
    """Set all but the largest piece of each of these values to 0, in place; of equal pieces, the first is kept.

    `touching` names the values that a value should touch. If pieces of it share a face with the largest piece of one of
    these, the largest of them is kept, even if another one is up to ten times as large.
    `per_slice`: the first axis counts slices, and the largest piece of each slice is kept.
    """
    values, touching = tuple(values), touching or {}
    for part in classes if per_slice else [classes]:
        boxes = dict(_boxes(part, {*values, *(other for others in touching.values() for other in others)}))
        for value in values:
            if value not in boxes:
                continue
            pieces, sizes = numbered_pieces(_voxels_of(part[boxes[value]], value))
            if len(sizes) > 1:
                others = {other: boxes[other] for other in touching.get(value, ()) if other in boxes}
                kept = 1 + _preferred(part, boxes[value], pieces, sizes, others)
                for block, numbers in paired_blocks(part[boxes[value]], pieces):
                    block[(numbers > 0) & (numbers != kept)] = 0


def _preferred(
    classes: Integer[np.ndarray, "..."],
    box: tuple[slice, ...],
    pieces: NDArray[Any],
    sizes: NDArray[Any],
    others: Mapping[int, tuple[slice, ...]],
) -> int:
    """Which of the pieces in a box is kept; `others` are the values that it should touch, with their boxes."""
    largest = int(sizes.argmax())
    main = {other: numbered_pieces(_voxels_of(classes[of_other], other)) for other, of_other in others.items()}
    for number in np.argsort(-sizes, kind="stable")[:MOST_TRIED] if others else ():
        if sizes[number] < LEAST_TOUCHING * sizes[largest]:
            break
        around = _around(pieces == number + 1, box, classes.shape)
        found = classes[tuple(around.T)]
        for other, of_other in others.items():
            place = around[found == other] - [side.start for side in of_other]
            numbers, counts = main[other]
            if (numbers[tuple(place.T)] == 1 + int(counts.argmax())).any():
                return int(number)
    return largest


def fractions_around(
    classes: Integer[np.ndarray, "..."], values: Collection[int], *, per_slice: bool = False
) -> dict[tuple[int, int], float]:
    """{(value, other): fraction of the voxels around the value that have the other}, of those that share a face.

    Voxels below 0 do not count; for `per_slice` as above.
    """
    total: dict[int, int] = {}
    touching: dict[tuple[int, int], int] = {}
    for part in classes if per_slice else [classes]:
        for value, box in _boxes(part, values):
            around = _around(_voxels_of(part[box], value), box, part.shape)
            found, counts = np.unique(part[tuple(around.T)], return_counts=True)
            for other, count in zip(found.tolist(), counts.tolist(), strict=True):
                total[value] = total.get(value, 0) + count * (other >= 0)
                if other in values:
                    touching[value, other] = touching.get((value, other), 0) + count
    return {(value, other): count / total[value] for (value, other), count in touching.items()}


def _around(inside: Bool[np.ndarray, "..."], box: tuple[slice, ...], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Indices, in an array of this shape, of the voxels that share a face with a mask in this box."""
    start = np.array([side.start for side in box])
    low = np.minimum(1, start)
    high = np.minimum(1, np.array(shape) - [side.stop for side in box])
    wide = np.pad(inside, list(zip(low.tolist(), high.tolist(), strict=True)))
    rim: NDArray[np.intp] = np.argwhere(ndimage.binary_dilation(wide) & ~wide) + (start - low)
    return rim


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
