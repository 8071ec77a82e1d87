"""Intervals, paired tests and corrections agree with hand values and with SciPy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, t, wilcoxon

from handful.evaluation.evaluate import Estimate
from handful.evaluation.statistics import compare_pairs, holm, over_splits, signed_rank


def test_holm_by_hand():
    # sorted: 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1 lifted to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_passes_one_and_leaves_out_what_was_not_tested():
    corrected = holm([0.9, math.nan, 0.02, 0.8])
    assert corrected[0] == corrected[3] == 1.0
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.06)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_of_p_and_lies_between_p_and_bonferroni(p_values: list[float]):
    corrected = holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1.0, len(p_values) * p) or after == pytest.approx(p)
    order = np.argsort(p_values, kind="stable")
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(order))


@pytest.mark.parametrize(("n", "p"), [(5, 2 / 2**5), (6, 2 / 2**6), (8, 2 / 2**8)])
def test_signed_rank_where_all_cases_agree_is_two_in_two_to_the_n(n: int, p: float):
    assert signed_rank([0.01 * (k + 1) for k in range(n)]) == pytest.approx(p)


def test_signed_rank_by_hand():
    # ranks 1 2 3 4, the smallest one negative: W = 1; sums of ranks up to 1 are {} and {1}, so p = 2 × 2/16
    assert signed_rank([-0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.25)


@pytest.mark.parametrize("n", [7, 30, 80])
@pytest.mark.parametrize("rounded", [False, True], ids=["no ties", "ties and zeros"])
def test_signed_rank_is_scipys(n: int, rounded: bool):
    values = np.random.default_rng(n).normal(0.02, 0.05, n)
    differences = (values.round(1 if n < 20 else 2) if rounded else values).tolist()
    if any(differences):
        assert signed_rank(differences) == wilcoxon(differences).pvalue


def test_configurations_that_never_differ_have_p_1():
    assert signed_rank([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(signed_rank([]))


def test_pairs_are_compared_on_the_cases_they_share_and_corrected_together():
    scores = {
        "a": {0: {f"case-{k}": 0.9 - 0.01 * k for k in range(8)}},
        "b": {0: {f"case-{k}": 0.7 - 0.02 * k for k in range(2, 10)}},
        "c": {0: {f"case-{k}": 0.9 - 0.01 * k for k in range(8)}},
    }
    a_b, a_c, b_c = compare_pairs(scores)
    assert (a_b.first, a_b.second, a_b.n) == ("a", "b", 6)
    assert a_b.difference.mean == pytest.approx(np.mean([0.2 + 0.01 * k for k in range(2, 8)]))
    assert a_b.p == b_c.p == pytest.approx(2 / 2**6)
    assert (a_c.p, a_c.difference.mean) == (1.0, 0.0)
    assert [one.p_holm for one in (a_b, a_c, b_c)] == pytest.approx([3 / 32, 1.0, 3 / 32])


def test_a_pairs_p_is_scipys_of_the_two_configurations_scores():
    split = np.random.default_rng(3)
    first, second = split.normal(0.8, 0.05, 14).round(4), split.normal(0.77, 0.05, 14).round(4)
    scores = {name: {0: {f"case-{k:02}": s for k, s in enumerate(of)}} for name, of in (("a", first), ("b", second))}
    (found,) = compare_pairs(scores)
    assert found.p == found.p_holm == pytest.approx(wilcoxon(first, second).pvalue)
    assert found.difference.mean == pytest.approx(float(np.mean(first - second)))


@pytest.mark.parametrize("n", [8, 25, 200])
def test_the_interval_of_a_mean_is_scipys_bootstrap_and_with_many_cases_students(n: int):
    values = np.random.default_rng(n).normal(0.75, 0.1, n)
    found = Estimate.of(values.tolist())
    scipys = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(99))
    width = found.high - found.low
    assert found.low == pytest.approx(scipys.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(scipys.confidence_interval.high, abs=0.05 * width)
    error = values.std(ddof=1) / math.sqrt(n)
    low, high = t.interval(0.95, n - 1, values.mean(), error)
    assert width <= high - low
    assert width == pytest.approx(high - low, rel=0.03 if n == 200 else 0.25)


def numbered(*splits: Sequence[float]) -> list[dict[int, float]]:
    """Splits without a common case."""
    return [{100 * split + case: value for case, value in enumerate(values)} for split, values in enumerate(splits)]


def test_a_pair_is_compared_split_by_split_and_tested_case_by_case():
    first = {0: {"a": 0.8, "b": 0.7}, 1: {"a": 0.9}, 2: {"z": 0.1}}
    second = {0: {"a": 0.7, "b": 0.7}, 1: {"a": 0.6}, 3: {"a": 0.9}}
    (found,) = compare_pairs({"first": first, "second": second})
    assert found.n == 2
    assert found.difference == over_splits([{"a": 0.1, "b": 0.0}, {"a": 0.3}])
    assert found.p == signed_rank([0.2, 0.0])


def test_the_interval_is_students_over_the_means_of_the_splits():
    rng = np.random.default_rng(2)
    values = rng.normal(0.7, 0.1, (5, 1)) + rng.normal(0, 0.02, (5, 9))
    found = over_splits(numbered(*values.tolist()))
    means = values.mean(axis=1)
    low, high = t.interval(0.95, 4, means.mean(), means.std(ddof=1) / math.sqrt(5))
    assert (found.mean, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert found.sd == pytest.approx(means.std(ddof=1))


def test_splits_that_agree_by_luck_give_no_narrow_interval():
    splits = [[0.4, 0.6], [0.3, 0.7], [0.45, 0.55]]
    found = over_splits(numbered(*splits))
    assert found.sd == pytest.approx(0)
    of_cases = np.mean([np.var(pair, ddof=1) / 2 for pair in splits])
    assert found.high - found.mean == pytest.approx(t.ppf(0.975, 3) * math.sqrt(of_cases / 3))


def test_one_split_has_a_mean_and_no_interval():
    found = over_splits([{"a": 0.5, "b": 0.6}])
    assert found.mean == pytest.approx(0.55)
    assert all(math.isnan(value) for value in (found.sd, found.low, found.high))


def test_every_split_counts_the_same():
    found = over_splits(numbered([1.0, 1.0, 1.0, 1.0], [0.0]))
    assert found.mean == 0.5
    assert found.sd == pytest.approx(math.sqrt(0.5))


def test_an_interval_ends_at_the_values_that_are_possible():
    splits = numbered([0.9, 1.0], [0.5, 0.6])
    assert over_splits(splits).high > 1
    assert over_splits(splits, (0.0, 1.0)).low == 0.0
    assert over_splits(splits, (0.0, 1.0)).high == 1.0


def test_splits_that_share_their_cases_say_less():
    values = np.random.default_rng(3).normal(0.7, 0.1, 8)
    offsets = (-0.02, 0.0, 0.02)
    shared = over_splits([{case: value + offset for case, value in enumerate(values)} for offset in offsets])
    apart = over_splits(numbered(*[(values + offset).tolist() for offset in offsets]))
    assert shared.mean == pytest.approx(apart.mean)
    # the cases are the same, so their variance does not shrink with the number of splits
    of_cases = values.var(ddof=1) / 8
    assert shared.high - shared.mean == pytest.approx(t.ppf(0.975, 2) * math.sqrt(0.02**2 / 3 + of_cases))
    assert apart.high - apart.mean == pytest.approx(
        max(t.ppf(0.975, 2) * 0.02 / math.sqrt(3), t.ppf(0.975, 21) * math.sqrt(of_cases / 3))
    )


def test_nothing_measured_is_nan():
    assert math.isnan(over_splits([{}, {}]).mean)
