"""Statistics of scores over cases and splits: confidence intervals and paired tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import t, wilcoxon

from handful.evaluation.evaluate import Estimate

EVERYTHING = (-math.inf, math.inf)

Splits = Mapping[int, Mapping[str, float]]
"""{split: {case: score}}."""


def over_splits(splits: Sequence[Mapping[Any, float]], bounds: tuple[float, float] = EVERYTHING) -> Estimate:
    """The mean of the splits' means, their standard deviation, and a 95 % interval; `splits` hold {case: score}.

    The interval is Student's t over the means of the splits, with as many degrees of freedom as there are splits less
    one. Splits that share cases vary less than they should, so the covariance of their means, as far as it is positive,
    is added to the variance. Splits that agree by luck give no narrow interval: it is at least that over the cases
    within the splits. With one split, interval and standard deviation are nan: how much the result depends on the
    labelled cases is not known then. The interval is cut at `bounds`, the possible values.
    """
    filled = [dict(scores) for scores in splits if scores]
    if not filled:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    means = [fmean(scores.values()) for scores in filled]
    mean = fmean(means)
    if len(means) < 2:
        return Estimate(mean, math.nan, math.nan, math.nan)
    sd = float(np.std(means, ddof=1))
    shared = max(0.0, _shared_covariance(filled))
    of_cases = fmean(_variance_of_mean(scores) for scores in filled)
    cases = len(set().union(*filled))
    reach = max(
        _t(len(means) - 1) * math.sqrt(sd**2 / len(means) + shared),
        _t(max(1, cases - len(means))) * math.sqrt(max(0.0, of_cases - shared) / len(means) + shared),
    )
    return Estimate(mean, sd, max(mean - reach, bounds[0]), min(mean + reach, bounds[1]))


@dataclass(frozen=True)
class Comparison:
    """Two configurations compared on the cases that both have segmented."""

    first: str
    second: str
    n: int
    """Number of cases."""
    difference: Estimate
    """First minus second, over splits."""
    p: float
    """Two-sided Wilcoxon signed-rank test of each case's mean over the splits; 1 if no case differs, nan if there is no
    case. It is about these fits on other cases, not about other labelled cases."""
    p_holm: float
    """`p` after Holm's correction for all pairs compared together."""


def compare_pairs(scores: Mapping[str, Splits]) -> list[Comparison]:
    """All pairs of configurations in {configuration: {split: {case: score}}}, on the splits and cases that both have.

    p-values are corrected for all pairs.
    """
    comparisons = [_compare(first, second, scores[first], scores[second]) for first, second in _pairs(scores)]
    corrected = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p_holm=p) for comparison, p in zip(comparisons, corrected, strict=True)]


def differences(first: Splits, second: Splits) -> list[dict[str, float]]:
    """First minus second for each case that both have, by the splits that both have."""
    return [
        # rounded, so that scores that differ only by the order of a sum are ties
        {case: round(first[n][case] - second[n][case], 12) for case in sorted(first[n].keys() & second[n].keys())}
        for n in sorted(first.keys() & second.keys())
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the same order.

    nan stays nan and is not counted as a test.
    """
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, largest = list(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def signed_rank(differences: Sequence[float]) -> float:
    """p of SciPy's two-sided Wilcoxon signed-rank test; 1 if all differences are 0, nan if there are none.

    Exact for up to 50 cases without ties and zeros.
    """
    if not differences:
        return math.nan
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def _pairs(scores: Mapping[str, Splits]) -> list[tuple[str, str]]:
    return list(itertools.combinations(scores, 2))


def _compare(first: str, second: str, of_first: Splits, of_second: Splits) -> Comparison:
    by_split = differences(of_first, of_second)
    by_case: dict[str, list[float]] = {}
    for split in by_split:
        for case, difference in split.items():
            by_case.setdefault(case, []).append(difference)
    means = [round(fmean(values), 12) for values in by_case.values()]
    return Comparison(first, second, len(means), over_splits(by_split), signed_rank(means), math.nan)


def _t(degrees: int) -> float:
    return float(t.ppf(0.975, degrees))


def _variance_of_mean(scores: Mapping[Any, float]) -> float:
    """Of the mean of a split, from the differences between its cases; 0 with one case."""
    return float(np.var([*scores.values()], ddof=1)) / len(scores) if len(scores) > 1 else 0.0


def _shared_covariance(splits: Sequence[Mapping[Any, float]]) -> float:
    """Mean covariance of the means of two splits, from the cases that both have; 0 where no splits share a case."""
    found = []
    for first, second in itertools.combinations(splits, 2):
        shared = first.keys() & second.keys()
        sizes = len(first) * len(second)
        if len(first) < 2 or len(second) < 2 or not shared:
            found.append(0.0)
            continue
        means = fmean(first.values()), fmean(second.values())
        products = sum((first[case] - means[0]) * (second[case] - means[1]) for case in shared)
        # deviations from a mean of n are too small by a factor of sqrt((n - 1) / n)
        found.append(products / sizes * math.sqrt(sizes / ((len(first) - 1) * (len(second) - 1))))
    return fmean(found)
