"""Intervals, paired tests and corrections agree with hand values and with SciPy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, t, wilcoxon

from handful.evaluation.evaluate import Estimate
from handful.evaluation.statistics import compare_pairs, holm, over_splits, shots_to_reach, signed_rank


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
        "a": {f"case-{k}": 0.9 - 0.01 * k for k in range(8)},
        "b": {f"case-{k}": 0.7 - 0.02 * k for k in range(2, 10)},
        "c": {f"case-{k}": 0.9 - 0.01 * k for k in range(8)},
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
    scores = {name: {f"case-{k:02}": s for k, s in enumerate(of)} for name, of in (("a", first), ("b", second))}
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


def test_one_split_is_judged_by_its_cases():
    values = [0.5, 0.6, 0.9, 0.7]
    one, plain = over_splits([values]), Estimate.of(values)
    assert (one.mean, one.low, one.high) == (plain.mean, plain.low, plain.high)
    assert math.isnan(one.sd)


def test_every_split_counts_the_same():
    found = over_splits([[1.0, 1.0, 1.0, 1.0], [0.0]])
    assert found.mean == 0.5
    assert found.sd == pytest.approx(math.sqrt(0.5))


def test_splits_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (3, 12))
    alike = over_splits((0.8 + noise).tolist())
    apart = over_splits((np.array([[0.6], [0.8], [1.0]]) + noise).tolist())
    assert alike.low < 0.8 < alike.high
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_the_two_stage_interval_has_the_width_that_theory_gives():
    rng = np.random.default_rng(1)
    between, within, splits, cases = 0.04, 0.10, 40, 25
    values = 0.7 + rng.normal(0, between, (splits, 1)) + rng.normal(0, within, (splits, cases))
    found = over_splits(values.tolist())
    # resampled splits carry both kinds of noise, and the cases within them are resampled once more
    means = values.mean(axis=1)
    error = math.sqrt((means.var() + values.var(axis=1).mean() / cases) / splits)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def test_nothing_measured_is_nan():
    assert math.isnan(over_splits([[], []]).mean)


def test_the_fewest_shots_that_reach_a_target():
    curve = {8: 0.9, 1: 0.5, 4: 0.7, 2: 0.71}
    assert [shots_to_reach(curve, target) for target in (0.4, 0.7, 0.9, 0.91)] == [1, 2, 8, None]
