"""Statistics of scores over cases and splits: confidence intervals and paired tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import wilcoxon

from handful.evaluation.evaluate import RESAMPLES, Estimate


def over_splits(splits: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of the splits' means, their standard deviation, and a 95 % interval; `splits` hold one value per case.

    The interval is a two-stage percentile bootstrap: splits are resampled, and cases within each split. With one split,
    only the cases are resampled, and the standard deviation is nan.
    """
    filled = [np.asarray(values, dtype=np.float64) for values in splits if len(values)]
    if len(filled) < 2:
        of_cases = Estimate.of(filled[0].tolist() if filled else [], seed)
        return replace(of_cases, sd=math.nan)
    means = [float(values.mean()) for values in filled]
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for _ in filled:
        resampled = np.stack(
            [values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1) for values in filled]
        )
        total += resampled[rng.integers(0, len(filled), RESAMPLES), np.arange(RESAMPLES)]
    low, high = np.quantile(total / len(filled), [0.025, 0.975])
    return Estimate(float(np.mean(means)), float(np.std(means, ddof=1)), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Two configurations compared on the cases that both have segmented."""

    first: str
    second: str
    n: int
    """Number of cases."""
    difference: Estimate
    """First minus second, over cases."""
    p: float
    """Two-sided Wilcoxon signed-rank test; 1 if no case differs, nan if there is no case."""
    p_holm: float
    """`p` after Holm's correction for all pairs compared together."""


def compare_pairs(scores: Mapping[str, Mapping[str, float]], seed: int = 0) -> list[Comparison]:
    """All pairs of configurations in {configuration: {case: score}}, with p-values corrected for all of them."""
    pairs = list(itertools.combinations(scores, 2))
    comparisons = [_compare(first, second, scores[first], scores[second], seed) for first, second in pairs]
    corrected = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p_holm=p) for comparison, p in zip(comparisons, corrected, strict=True)]


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


def shots_to_reach(curve: Mapping[int, float], target: float) -> int | None:
    """The smallest number of shots whose score in {shots: score} is at least `target`; None if there is none."""
    return next((shots for shots, score in sorted(curve.items()) if score >= target), None)


def _compare(
    first: str, second: str, of_first: Mapping[str, float], of_second: Mapping[str, float], seed: int
) -> Comparison:
    common = sorted(of_first.keys() & of_second.keys())
    # rounded, so that scores that differ only by the order of a sum are ties
    differences = [round(of_first[case] - of_second[case], 12) for case in common]
    return Comparison(first, second, len(common), Estimate.of(differences, seed), signed_rank(differences), math.nan)
