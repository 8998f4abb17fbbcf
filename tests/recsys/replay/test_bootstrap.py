"""Intervals by people: closed forms, planted differences, and how often they hold the truth."""

import numpy as np
import pytest

from recsys.replay.bootstrap import ByUser, holm, paired


def test_a_mean_is_over_events_and_its_spread_over_people() -> None:
    # People of equal size: the spread of the mean is that of people's means over √U, however many events each has.
    rng = np.random.default_rng(0)
    own = rng.normal(size=400)
    user = np.repeat(np.arange(400), 25)
    sums = ByUser.of(own[user][:, None], user, 400)
    assert sums.means_C[0] == pytest.approx(own.mean())
    assert sums.resampled(4000, 1).std() == pytest.approx(own.std() / 20, rel=0.05)


def test_a_value_that_is_none_counts_for_nobody() -> None:
    sums = ByUser.of(np.array([1.0, np.nan, 4.0]), np.array([0, 0, 1]), 2)
    assert sums.counts_UC[:, 0].tolist() == [1, 1]
    assert sums.means_C[0] == 2.5


def test_pairing_finds_what_is_hidden_by_people() -> None:
    rng = np.random.default_rng(3)
    level = rng.normal(0, 1, size=300)
    a, b = level + 0.05 + rng.normal(0, 0.05, 300), level + rng.normal(0, 0.05, 300)
    user = np.arange(300)
    found = paired(ByUser.of(a, user, 300), ByUser.of(b, user, 300), resamples=2000, seed=0)
    assert found.low_C[0] > 0
    assert found.p_C[0] < 0.01
    assert found.high_C[0] - found.low_C[0] == pytest.approx(2 * 1.96 * np.std(a - b) / np.sqrt(300), rel=0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(120), rng.integers(1, 6, size=120))
        a = rng.random(len(user)) < (0.3 + 0.1 * rng.normal(size=120))[user]
        b = rng.random(len(user)) < 0.3
        one = paired(
            ByUser.of(a.astype(float), user, 120), ByUser.of(b.astype(float), user, 120), resamples=400, seed=seed
        )
        held += bool(one.low_C[0] <= 0 <= one.high_C[0])
    assert 0.90 <= held / 200 <= 0.99


def test_holm() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.9])).tolist() == [1, 1]
