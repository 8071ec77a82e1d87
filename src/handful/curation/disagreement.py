"""Inconsistency of a segmenter: the difference between its predictions for a scan and for a slightly altered scan."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from handful.data.slicing import SliceView
from handful.data.volume import Labels, Volume
from handful.methods.base import Segmenter

SHIFT = 0.03
"""Shift of the altered scan, as a fraction of rows and columns."""
GAMMA = 0.75
"""Gamma correction of the altered scan, on values from 0 to 1."""
SMOOTHING = 0.25
"""Fraction of a label's mean area that is added to the area of agreement, so that tiny regions count little."""


@dataclass(frozen=True, eq=False)
class SegmentedCase:
    """A segmenter's prediction for the slices of a case, and its disagreement with that for an altered scan."""

    labels: Labels
    distances: Float[np.ndarray[Any, Any], "n k"]
    """1 - Dice (smoothed) between the two predictions of each slice and label; nan if neither contains the label."""
    packed: tuple[bytes, ...]
    """The label values of each slice, compressed."""
    size: tuple[int, int]
    """Rows and columns of a slice."""

    @classmethod
    def of(cls, segmenter: Segmenter, volume: Volume, view: SliceView) -> SegmentedCase:
        """Segment the volume and an altered copy of it."""
        first = view.of(segmenter.predict(volume).array).astype(np.int32)
        altered, down, across = _altered(volume, view)
        second = view.of(segmenter.predict(altered).array)
        height, width = view.size
        both = first[:, : height - down, : width - across], second[:, down:, across:]
        packed = tuple(zlib.compress(np.ascontiguousarray(classes).tobytes(), 1) for classes in first)
        return cls(segmenter.labels, _distances(*both, segmenter.labels), packed, view.size)

    def predicted(self, number: int) -> NDArray[np.int32]:
        """The label values of a slice (h, w)."""
        return np.frombuffer(zlib.decompress(self.packed[number]), dtype=np.int32).reshape(self.size)

    @property
    def disagreement(self) -> NDArray[np.float64]:
        """The mean distance of each slice over its predicted labels; 0 without any."""
        predicted = ~np.isnan(self.distances)
        mean: NDArray[np.float64] = np.nansum(self.distances, axis=1) / np.maximum(predicted.sum(axis=1), 1)
        return mean

    def worst(self, numbers: Sequence[int]) -> str:
        """The name of the label with the largest total distance in these slices."""
        return self.labels.names[int(np.nansum(self.distances[list(numbers)], axis=0).argmax())]


def _altered(volume: Volume, view: SliceView) -> tuple[Volume, int, int]:
    """The scan shifted and with another brightness, and the shift in rows and columns."""
    height, width = view.size
    down, across = round(SHIFT * height), round(SHIFT * width)
    rows, columns = np.maximum(np.arange(height) - down, 0), np.maximum(np.arange(width) - across, 0)
    array = np.empty_like(volume.array)
    limits = dict.fromkeys(range(len(array)), view.limits[0])
    if view.sequences is not None:
        limits |= dict(zip(view.sequences, view.limits, strict=True))
    for channel, (old, new) in enumerate(zip(volume.array, array, strict=True)):
        target = view.of(new)
        for number, values in enumerate(view.of(old)):
            target[number] = _brightened(values[rows][:, columns], *limits[channel])
    return replace(volume, array=array), down, across


def _brightened(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Gamma correction of the values inside the window; the others, and so the window, stay the same."""
    if low == high:
        return values
    scaled = (values.astype(np.float32) - low) / (high - low)
    changed = low + (high - low) * np.clip(scaled, 0, 1) ** GAMMA
    if values.dtype.kind in "iu":
        changed = np.rint(changed)
    return np.where((scaled > 0) & (scaled < 1), changed, values).astype(values.dtype)


def _distances(first: NDArray[Any], second: NDArray[Any], labels: Labels) -> NDArray[np.float64]:
    """1 - Dice (n, k) with smoothing: differing voxels, divided by both areas plus SMOOTHING times their mean."""
    columns = []
    for value in labels.values:
        mask, other = first == value, second == value
        areas = mask.sum(axis=(1, 2)) + other.sum(axis=(1, 2))
        differing = (mask != other).sum(axis=(1, 2))
        mean_area = areas[areas > 0].mean() if areas.any() else 0.0
        columns.append(np.where(areas > 0, differing / np.maximum(areas + SMOOTHING * mean_area, 1), np.nan))
    return np.stack(columns, axis=1)
