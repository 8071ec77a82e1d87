"""Scores against the size, the complexity and the contrast of the objects: means by thirds, and rank correlations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from handful.evaluation.results import Result

LEAST = 6
"""Fewest objects of a data set that are divided into thirds."""


@dataclass(frozen=True)
class Thirds:
    """Scores of one configuration against one property of the objects.

    Objects are divided within each data set, since sets differ in more than this property; each set counts the same.
    """

    means: tuple[float, float, float]
    """Mean score of the objects with the lowest, middle and highest values."""
    correlation: float
    """Spearman's rank correlation between property and score, a mean over the data sets; nan if scores are constant."""
    data_sets: int
    objects: int


def thirds(results: Iterable[Result], feature: str, measure: str = "dice") -> Thirds | None:
    """The scores of one configuration, each result an object; None if too few objects have this property.

    `feature` is one of `handful.evaluation.results.FEATURES`.
    """
    by_set: dict[str, list[Result]] = {}
    for result in results:
        if not math.isnan(getattr(result, feature)):
            by_set.setdefault(result.data_set, []).append(result)
    enough = [rows for rows in by_set.values() if len(rows) >= LEAST]
    if not enough:
        return None
    parts = [_means(rows, feature, measure) for rows in enough]
    low, middle, high = (fmean(part[place] for part in parts) for place in range(3))
    correlations = [one for rows in enough if not math.isnan(one := _correlation(rows, feature, measure))]
    correlation = fmean(correlations) if correlations else math.nan
    return Thirds((low, middle, high), correlation, len(enough), sum(map(len, enough)))


def _means(rows: Sequence[Result], feature: str, measure: str) -> tuple[float, float, float]:
    order = sorted(rows, key=lambda row: (getattr(row, feature), row.case, row.label, row.split))
    scores = np.array([getattr(row, measure) for row in order])
    low, middle, high = (float(part.mean()) for part in np.array_split(scores, 3))
    return low, middle, high


def _correlation(rows: Sequence[Result], feature: str, measure: str) -> float:
    values, scores = ([getattr(row, name) for row in rows] for name in (feature, measure))
    if len(set(values)) < 2 or len(set(scores)) < 2:
        return math.nan
    return float(spearmanr(values, scores).statistic)
