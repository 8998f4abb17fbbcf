"""Intervals: the inequality worked out by hand, and how often each covers the truth."""

import numpy as np
import pytest

from recsys.replay import intervals


def test_bernstein_by_hand() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    log = np.log(2 / 0.025)  # each side at half of 5 %
    reach = np.sqrt(2 * 0.3 * log / 5) + 7 * log / (3 * 4)
    found = intervals.bernstein(mean=0.6, variance=float(values.var(ddof=1)), count=5, width=1.0, level=0.95)
    assert found == pytest.approx((0.6 - reach, 0.6 + reach))


def test_standard_error_of_a_mean_and_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    value_M1 = rng.random((400, 1))
    mean = intervals.standard_errors(value_M1, np.ones((400, 1)))
    assert mean == pytest.approx(value_M1.std(ddof=1) / 20)
    # Of a ratio that every unit agrees on there is no doubt, however large the units are.
    assert intervals.standard_errors(0.3 * value_M1, value_M1) == pytest.approx(0, abs=1e-12)


def test_both_cover_what_they_promise() -> None:
    """Means of skewed values: the bootstrap about as often as it says, Bernstein always."""
    rng = np.random.default_rng(1)
    truth, covered = 0.2, np.zeros(2)
    for seed in range(300):
        value_M1 = rng.beta(0.5, 2.0, (300, 1))
        low, high = intervals.bootstrap(value_M1, np.ones((300, 1)), level=0.95, replicates=400, seed=seed)
        covered[0] += low[0] <= truth <= high[0]
        least, most = intervals.bernstein(
            mean=float(value_M1.mean()), variance=float(value_M1.var(ddof=1)), count=300, width=1.0, level=0.95
        )
        covered[1] += least <= truth <= most
    assert 0.91 < covered[0] / 300 < 0.985
    assert covered[1] / 300 > 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    value_MK = np.random.default_rng(2).random((50, 3))
    ends = [intervals.bootstrap(value_MK, np.ones((50, 3)), level=0.9, replicates=100, seed=s) for s in (7, 7, 8)]
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
