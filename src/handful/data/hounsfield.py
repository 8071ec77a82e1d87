"""CT recognised by its voxels: the peaks of air and of soft tissue, also where a constant was added to all values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHIFTS = (0.0, 1024.0)
"""Constants that files add to Hounsfield units; 1000, which also occurs, is close enough to 1024."""
SAMPLE = 500_000
"""Voxels that are examined, on a regular lattice."""
BIN = 10.0
"""Width of the bins of the histogram, in HU."""
AIR = (-1060.0, -900.0)
"""Values of air outside the body, and of padding."""
SPARSE = (-600.0, -250.0)
"""Values of no tissue: between lung and fat only the edges of things."""
BODY = (-250.0, 3100.0)
SOFT = (-150.0, 150.0)
"""Fat, water, muscle and organs, with contrast agent or without."""
PEAK = 60.0
"""Half the width around the most frequent value of the body in which noise keeps one kind of tissue."""


def hounsfield_shift(array: NDArray[Any]) -> float | None:
    """The constant that was added to Hounsfield units in these voxels (1, i, j, k); None if they are no CT.

    A CT has air at -1000 HU, few voxels between lung and fat, and a body whose most frequent value, that of fat or of
    organs, is narrow: MR has no unit, and its tissues are broad. A crop without any air is not recognised.
    """
    if array.shape[0] != 1 or array.dtype == np.uint8:
        return None
    values = _sample(array).astype(np.float64)
    return next((shift for shift in SHIFTS if _is_hounsfield(values - shift)), None)


def _is_hounsfield(values: NDArray[np.float64]) -> bool:
    body = values[(values > BODY[0]) & (values < BODY[1])]
    soft, sparse, air = (_count(values, *limits) for limits in (SOFT, SPARSE, AIR))
    if body.size < max(200, 0.005 * values.size) or air < 0.002 * values.size:
        return False
    counts, edges = np.histogram(body, bins=np.arange(BODY[0], BODY[1] + BIN, BIN))
    top = float(edges[int(np.convolve(counts, np.ones(3), "same").argmax())]) + BIN / 2
    narrow = _count(body, top - PEAK, top + PEAK)
    return SOFT[0] < top < SOFT[1] and soft > 0.65 * body.size and narrow > 0.3 * body.size and sparse < 0.4 * soft


def _count(values: NDArray[np.float64], low: float, high: float) -> int:
    return int(((values >= low) & (values < high)).sum())


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.ceil((array[0].size / SAMPLE) ** (1 / 3)))
    return array[0, ::step, ::step, ::step].ravel()
