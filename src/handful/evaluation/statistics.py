"""What may be said of scores over cases and splits: intervals, paired tests, and how many labels a configuration
needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import wilcoxon

from handful.evaluation.evaluate import RESAMPLES, Estimate


def over_splits(splits: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """Of one value a case in each split: the mean of the splits' means, their SD, and a 95 % interval.

    The interval is a percentile bootstrap in two stages: splits are drawn again, and the cases within each. With one
    split it speaks of the cases alone, and the SD is nan.
    """
    filled = [np.asarray(values, dtype=np.float64) for values in splits if len(values)]
    if len(filled) < 2:
        one = Estimate.of(filled[0].tolist() if filled else [], seed)
        return replace(one, sd=math.nan)
    means = [float(values.mean()) for values in filled]
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for _ in filled:
        again = np.stack([values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1) for values in filled])
        total += again[rng.integers(0, len(filled), RESAMPLES), np.arange(RESAMPLES)]
    low, high = np.quantile(total / len(filled), [0.025, 0.975])
    return Estimate(float(np.mean(means)), float(np.std(means, ddof=1)), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the cases that both segmented."""

    first: str
    second: str
    n: int
    difference: Estimate
    """Of first minus second, over cases."""
    p: float
    """Wilcoxon's signed-rank test, two-sided; 1 where no case differs, nan without a case."""
    p_holm: float
    """The same after Holm's correction for all pairs compared together."""


def compare_pairs(scores: Mapping[str, Mapping[str, float]], seed: int = 0) -> list[Comparison]:
    """All pairs of configurations in {configuration: {case: score}}, in the mapping's order, corrected together."""
    pairs = list(itertools.combinations(scores, 2))
    found = [_compare(first, second, scores[first], scores[second], seed) for first, second in pairs]
    corrected = holm([one.p for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in their order.

    nan stays nan and counts for nothing.
    """
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, largest = list(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def signed_rank(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, as SciPy has it; 1 where none differs, nan where there is none.

    Exact up to 50 cases without ties and zeros.
    """
    if not differences:
        return math.nan
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def shots_to_reach(curve: Mapping[int, float], target: float) -> int | None:
    """The fewest shots at which a curve {shots: score, larger is better} reaches the target; None if it never does."""
    return next((shots for shots, score in sorted(curve.items()) if score >= target), None)


def _compare(
    first: str, second: str, of_first: Mapping[str, float], of_second: Mapping[str, float], seed: int
) -> Comparison:
    common = sorted(of_first.keys() & of_second.keys())
    # Rounded, so that scores equal but for the order of a sum are ties.
    differences = [round(of_first[case] - of_second[case], 12) for case in common]
    return Comparison(first, second, len(common), Estimate.of(differences, seed), signed_rank(differences), math.nan)
