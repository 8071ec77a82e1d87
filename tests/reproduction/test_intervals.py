"""95 % intervals cover the true value as often as they say, in the situations of the studies."""

import pytest

from reproduction.studies.intervals import POOLS, SPREADS, Situation, bootstrap, coverage, over_splits
from reproduction.verdicts import ERROR


@pytest.mark.parametrize("like", SPREADS)
@pytest.mark.parametrize("cases", POOLS)
def test_three_splits_are_enough_for_an_interval_that_covers(like: str, cases: str):
    covers, above = coverage(Situation(like, 3, cases), over_splits, rounds=1200)
    assert covers >= 0.93
    assert above <= ERROR + 0.01


@pytest.mark.parametrize("like", SPREADS)
def test_the_bootstrap_did_not_cover_where_splits_share_their_cases(like: str):
    covers, above = coverage(Situation(like, 3, "same"), bootstrap, rounds=150)
    assert covers < 0.91
    assert above > 2 * ERROR
