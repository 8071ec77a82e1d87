"""Properties of a labelled object that make it easy or hard to segment: size, complexity of its boundary, contrast.

Studies of SAM on medical images relate the Dice to such properties (Mazurowski et al., Medical Image Analysis 89, 2023;
Huang et al., Medical Image Analysis 92, 2024). The definitions are our own, since those papers measure them in other
ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.slicing import SliceView

LEAST_RING = 2.0
"""Smallest width in pixels of the ring around an object that it is compared with."""


@dataclass(frozen=True)
class ObjectFeatures:
    """Means over the slices in which the object is; nan for an absent object."""

    size_share: float
    """Its pixels, as a fraction of the slice."""
    complexity: float
    """Length of its boundary, divided by the circumference of a circle of the same area: about 1 for a disc, more for
    an indented or elongated object and for several pieces."""
    contrast: float
    """Difference between the mean grey value inside and in a ring around it; the window of the slices is 1 wide."""


def object_features(stack: SliceView, mask: Bool[np.ndarray[Any, Any], "i j k"]) -> ObjectFeatures:
    """The properties of an object, `mask` on the grid of the scan, in the slices of `stack`."""
    slices = stack.of(mask)
    numbers = np.flatnonzero(slices.any(axis=(1, 2))).tolist()
    if not numbers:
        return ObjectFeatures(math.nan, math.nan, math.nan)
    found = []
    for number in numbers:
        image = stack.take([number])[0].mean(dim=0).numpy()
        found.append((slices[number].mean(), boundary_complexity(slices[number]), contrast(image, slices[number])))
    size, complexity, difference = np.mean(found, axis=0).tolist()
    return ObjectFeatures(size, complexity, difference)


def boundary_complexity(mask: Bool[np.ndarray[Any, Any], "h w"]) -> float:
    """Length of the boundary, divided by the circumference of a circle of the same area.

    The length follows from how often lines in four directions cross the boundary (Cauchy and Crofton), which
    does not overestimate slanted edges as a count of pixel edges does.
    """
    inside = np.pad(mask, 1)
    along_axes = _crossings(inside[:, 1:], inside[:, :-1]) + _crossings(inside[1:], inside[:-1])
    diagonal = _crossings(inside[1:, 1:], inside[:-1, :-1]) + _crossings(inside[1:, :-1], inside[:-1, 1:])
    length = math.pi / 8 * (along_axes + diagonal / math.sqrt(2))
    return length / (2 * math.sqrt(math.pi * int(mask.sum())))


def contrast(image: Float[np.ndarray[Any, Any], "h w"], mask: Bool[np.ndarray[Any, Any], "h w"]) -> float:
    """Difference between the mean inside and in a ring around the object, a tenth of its diameter wide; from 0.

    0 if the object fills the image.
    """
    width = max(LEAST_RING, 0.2 * math.sqrt(int(mask.sum()) / math.pi))
    reach = math.ceil(width)
    box = tuple(
        slice(max(part.start - reach, 0), part.stop + reach) for part in ndimage.find_objects(mask.astype(np.uint8))[0]
    )
    inside, values = mask[box], image[box]
    ring = ~inside & (ndimage.distance_transform_edt(~inside) <= width)
    if not ring.any():
        return 0.0
    return abs(float(values[inside].mean()) - float(values[ring].mean()))


def _crossings(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> int:
    """How many neighbouring pixels differ."""
    return int(np.count_nonzero(first != second))
