"""How well a prediction agrees with the truth, for tests of what learns."""

from __future__ import annotations

import numpy as np

from handful.data.volume import LabelMap


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Of two masks; 0 where both are empty."""
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


def mean_dice(found: LabelMap, truth: LabelMap) -> float:
    """The mean over the labels of the truth."""
    return float(np.mean([dice(found.array == value, truth.array == value) for value in truth.labels.values]))
