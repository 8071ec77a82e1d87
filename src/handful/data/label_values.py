"""Whether the many values of a label map are classes at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.volume import Labels

MOST_VALUES = 24
"""More values than these, without names, are doubted."""


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
    boxes = ndimage.find_objects(np.maximum(classes, 0))
    full = ndimage.generate_binary_structure(classes.ndim, classes.ndim)
    pieces = [
        ndimage.label(classes[box] == value, full)[1] for value, box in enumerate(boxes, start=1) if box is not None
    ]
    return sum(number == 1 for number in pieces) / len(pieces)
