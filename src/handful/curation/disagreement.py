"""Where a segmenter contradicts itself: how far its predictions of a scan and of a slightly altered one lie apart."""

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
"""How far the altered scan is moved, as a share of rows and of columns."""
GAMMA = 0.75
"""How the altered scan's brightness is changed, on values from 0 to 1."""
STEADY = 0.25
"""Share of a label's usual area that both predictions are taken to agree on, so that a speck contradicts little."""


@dataclass(frozen=True, eq=False)
class SegmentedCase:
    """A segmenter's prediction for the slices of a case, and how far it contradicts itself."""

    labels: Labels
    distances: Float[np.ndarray[Any, Any], "n k"]
    """Between its two predictions of each slice and label; nan where neither found it."""
    packed: tuple[bytes, ...]
    """The label values of each slice, compressed to some hundred bytes."""
    size: tuple[int, int]

    @classmethod
    def of(cls, segmenter: Segmenter, volume: Volume, view: SliceView) -> SegmentedCase:
        """Segments the volume twice: as it is, and altered."""
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
        """Of each slice: mean over the labels found in it, 0 without any."""
        found = ~np.isnan(self.distances)
        mean: NDArray[np.float64] = np.nansum(self.distances, axis=1) / np.maximum(found.sum(axis=1), 1)
        return mean

    def worst(self, numbers: Sequence[int]) -> str:
        """The name of the label that is contradicted most in these slices."""
        return self.labels.names[int(np.nansum(self.distances[list(numbers)], axis=0).argmax())]


def _altered(volume: Volume, view: SliceView) -> tuple[Volume, int, int]:
    """The scan as it might be on another day, moved and of other brightness; and by how many rows and columns."""
    height, width = view.size
    down, across = round(SHIFT * height), round(SHIFT * width)
    rows, columns = np.maximum(np.arange(height) - down, 0), np.maximum(np.arange(width) - across, 0)
    array = np.empty_like(volume.array)
    for old, new in zip(volume.array, array, strict=True):
        target = view.of(new)
        for number, values in enumerate(view.of(old)):
            target[number] = _brightened(values[rows][:, columns], view.low, view.high)
    return replace(volume, array=array), down, across


def _brightened(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Values inside the window changed, the others as they were, so that the window stays the same."""
    if low == high:
        return values
    shown = (values.astype(np.float32) - low) / (high - low)
    changed = low + (high - low) * np.clip(shown, 0, 1) ** GAMMA
    if values.dtype.kind in "iu":
        changed = np.rint(changed)
    return np.where((shown > 0) & (shown < 1), changed, values).astype(values.dtype)


def _distances(first: NDArray[Any], second: NDArray[Any], labels: Labels) -> NDArray[np.float64]:
    """(n, k): voxels in one prediction only, over those in both together and a share of the label's usual number."""
    columns = []
    for value in labels.values:
        one, other = first == value, second == value
        found = one.sum(axis=(1, 2)) + other.sum(axis=(1, 2))
        apart = (one != other).sum(axis=(1, 2))
        usual = found[found > 0].mean() if found.any() else 0.0
        columns.append(np.where(found > 0, apart / np.maximum(found + STEADY * usual, 1), np.nan))
    return np.stack(columns, axis=1)
