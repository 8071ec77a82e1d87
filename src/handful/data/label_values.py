"""The values of label maps: other numbers for them, their boxes, and whether many of them are classes at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.volume import Labels

MOST_VALUES = 24
"""More values than these, without names, are doubted."""
MOST_IN_TABLE = 2**16
"""Values below this one are looked up in a table with an entry for each number."""


def renumbered(classes: NDArray[Any], numbers: Mapping[int, int]) -> NDArray[Any]:
    """The classes with other numbers, as 16- or 32-bit integers; 0 for values (from 0) that `numbers` does not have.

    Memory does not depend on the size of the values.
    """
    kind = np.int16 if max(numbers.values()) < 2**15 else np.int32
    if max(numbers) < MOST_IN_TABLE and classes.max(initial=0) < MOST_IN_TABLE:
        table = np.zeros(MOST_IN_TABLE, kind)
        table[list(numbers)] = list(numbers.values())
        return np.asarray(table[classes])
    known = np.array(sorted(numbers))
    new = np.array([numbers[value] for value in known.tolist()], kind)
    place = np.searchsorted(known, classes).clip(max=len(known) - 1)
    return np.where(known[place] == classes, new[place], kind(0))


def boxes_of_values(classes: NDArray[Any]) -> dict[int, tuple[slice, ...]]:
    """{value: the smallest box that contains it} of all values above 0. Memory does not depend on their size."""
    if classes.max(initial=0) < MOST_IN_TABLE:
        boxes = ndimage.find_objects(np.ascontiguousarray(classes))
        return {value: box for value, box in enumerate(boxes, start=1) if box is not None}
    values, index = np.unique(classes, return_inverse=True)
    boxes = ndimage.find_objects(index.reshape(classes.shape) + 1)
    return {value: box for value, box in zip(values.tolist(), boxes, strict=True) if value > 0}


def doubt_about_values(classes: NDArray[Any], labels: Labels) -> str | None:
    """A sentence that says why the values (i, j, k) may not be classes; None if names or a small number speak for them.

    Values count as instance ids if nearly each of them is one connected piece, else as grey levels.
    """
    if any(name != f"label {value}" for value, name in labels.as_dict().items()):
        return None
    values = np.unique(classes[classes > 0])
    if len(values) <= MOST_VALUES:
        return None
    if _share_of_single_pieces(classes) > 0.9:
        return (
            f"{len(values)} label values without names, nearly each in one piece: are these instance ids (one per "
            "cell or nodule)? handful learns classes; give all instances of a class one value, or name the values in "
            "dataset.json"
        )
    return (
        f"{len(values)} label values without names: are these grey levels, as of a JPEG or a resampled mask? "
        "Threshold the labels or export them again, or name the values in dataset.json"
    )


def _share_of_single_pieces(classes: NDArray[Any]) -> float:
    """The share of the values that are one connected piece."""
    full = ndimage.generate_binary_structure(classes.ndim, classes.ndim)
    pieces = [ndimage.label(classes[box] == value, full)[1] for value, box in boxes_of_values(classes).items()]
    return sum(number == 1 for number in pieces) / len(pieces)
