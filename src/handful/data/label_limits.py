"""The grey values of labelled voxels in a CT, and the window that shows them and what lies around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from handful.data.volume import LabelMap, Volume

PERCENTILES = (5.0, 95.0)
"""Share of a label's voxels below and above its limits: edges with other tissue, metal."""
AROUND = 100.0
"""HU that a window reaches beyond the labels, so that fat, muscle and organs around them differ from them."""
WIDEST = (-1000.0, 400.0)
"""HU of a window at most; above there is bone, which is bright in any case."""
NARROWEST = 200.0
"""HU between the ends of a window at least."""

Limits = tuple[float, float]


def limits_of_labels(volume: Volume, reference: LabelMap, values: Sequence[int], shift: float) -> dict[int, Limits]:
    """Lower and upper limit in HU of each label of `values` that the case contains."""
    voxels: NDArray[np.generic] = volume.array[0]
    found: dict[int, Limits] = {}
    for value in values:
        inside = voxels[reference.array == value]
        if inside.size:
            low, high = np.percentile(inside, PERCENTILES)
            found[value] = (float(low) - shift, float(high) - shift)
    return found


def window_of_labels(cases: Iterable[Mapping[int, Limits]]) -> Limits | None:
    """The limits in HU of a window that shows all labels: each label's median limits over the cases, joined.

    Widened by AROUND on both sides, kept within WIDEST and at least NARROWEST wide. None without any labelled voxel.
    """
    by_label: dict[int, list[Limits]] = {}
    for case in cases:
        for value, limits in case.items():
            by_label.setdefault(value, []).append(limits)
    if not by_label:
        return None
    medians = np.array([np.median(limits, axis=0) for limits in by_label.values()])
    low, high = medians[:, 0].min() - AROUND, medians[:, 1].max() + AROUND
    low, high = (float(np.clip(limit, *WIDEST)) for limit in (low, high))
    missing = max(0.0, NARROWEST - (high - low)) / 2
    return round(low - missing), round(high + missing)
