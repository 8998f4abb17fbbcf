"""What a log is refused for, and what is set aside and counted."""

from dataclasses import replace

import numpy as np
import pytest

from features.errors import InputError
from recsys.replay.estimators._contract import Logged
from recsys.replay.overlap import Config, admit, overlap, require_support, warnings


def log(rows: int = 1_000) -> Logged:
    """Two actions at even odds, of which the target takes the first in 3 of 4 cases."""
    first = np.arange(rows) % 2 == 0
    return Logged(
        reward_N=np.where(first, 1.0, 0.0),
        propensity_N=np.full(rows, 0.5),
        target_N=np.where(first, 0.75, 0.25),
        cluster_N=np.arange(rows) // 2,
    )


def test_diagnostics_by_hand() -> None:
    found = overlap(replace(log(), cluster_N=None))
    assert found.mean_weight == pytest.approx(1)
    assert found.effective_rows == pytest.approx(1_000 * 1 / ((1.5**2 + 0.5**2) / 2))
    assert found.max_weight == 1.5
    assert found.mean_weight_error == pytest.approx(0.5 / np.sqrt(1_000))
    assert found.weight_quantiles["0.99"] == 1.5
    assert overlap(log()).mean_weight_error == pytest.approx(0), "a cluster has one of each"
    require_support(found, Config(), "log")
    assert warnings(found, Config()) == []


def test_impossible_rows_are_set_aside_and_counted() -> None:
    whole = log()
    whole.propensity_N[:4] = [0.0, np.nan, 1.5, -0.1]
    whole.reward_N[10] = np.nan
    whole.reward_N[11] = 2.0
    whole.target_N[12] = 1.01
    kept, counts = admit(whole, Config(), "log")
    assert counts == {
        "propensity: not a number": 1,
        "propensity: 0 or less": 2,
        "propensity: above 1": 1,
        "target probability: outside [0, 1]": 1,
        "reward: not a number": 1,
        "reward: outside [0, 1]": 1,
    }
    assert len(kept) == 1_000 - 7
    assert kept.cluster_N is not None
    assert set(kept.cluster_N) == set(range(500 - 3)), "numbers without gaps"


def test_a_log_of_many_impossible_rows_is_refused() -> None:
    whole = log()
    whole.propensity_N[:20] = 0
    with pytest.raises(InputError, match=r"^log: 20 of 1000 rows are impossible \(propensity: 0 or less in 20\); mend"):
        admit(whole, Config(), "log")
    assert len(admit(whole, Config(max_quarantined=0.02), "log")[0]) == 980
    with pytest.raises(InputError, match="0 of 0 rows"):
        admit(whole.rows(slice(0)), Config(), "log")


def test_a_target_beyond_the_log_is_refused() -> None:
    """The log never takes a third action, which the target takes in half of all cases."""
    beyond = replace(log(), target_N=log().target_N / 2)
    with pytest.raises(InputError, match=r"weights average 0\.500 ± 0\.000, and 1 is needed: the target takes actions"):
        require_support(overlap(beyond), Config(), "log")
    known = replace(beyond, unsupported_N=np.full(1_000, 0.5))
    with pytest.raises(InputError, match=r"gives 50\.0% of its probability to actions that the log never could take"):
        require_support(overlap(known), Config(), "log")


def test_wrong_propensities_and_other_actions_are_refused() -> None:
    with pytest.raises(InputError, match=r"average 2\.000 .* the propensities are too small"):
        require_support(overlap(replace(log(), propensity_N=np.full(1_000, 0.25))), Config(), "log")
    with pytest.raises(InputError, match="takes none of the logged actions"):
        require_support(overlap(replace(log(), target_N=np.zeros(1_000))), Config(), "log")


def test_few_rows_that_count_are_a_warning() -> None:
    target = np.full(1_000, 0.0005 * 999 / 999)
    target[0] = 1.0
    heavy = replace(log(), propensity_N=np.r_[0.002, np.full(999, 0.001)], target_N=target, cluster_N=None)
    said = " ".join(warnings(overlap(heavy), Config()))
    assert "The 1,000 rows are worth 4" in said
    assert "One row alone carries 50%" in said
