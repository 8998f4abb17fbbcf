"""The reward model: it learns, it is fitted without the rows it predicts, and its short cut is exact."""

import numpy as np
import polars as pl
import pytest

from recsys.replay import reward_model
from recsys.replay.estimators._contract import Floats

SITUATIONS = pl.DataFrame({"group": ["a", "b", "c"], "size": [0.1, -0.4, 2.0]})
ACTIONS = pl.DataFrame({"price": [1.0, 5.0, 2.0, 3.0]})
EXPECTED_XA = np.array([[0.1, 0.3, 0.5, 0.7], [0.2, 0.4, 0.6, 0.8], [0.05, 0.2, 0.3, 0.5]])
TARGET_XA = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)


def fitted(kind: str, reward_N: Floats | None = None) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    x, a = rng.integers(3, size=6_000), rng.integers(4, size=6_000)
    drawn_N = (rng.random(6_000) < EXPECTED_XA[x, a]).astype(float)
    return reward_model.cross_fit(
        reward_model.Config.model_validate({"kind": kind}),
        situations=SITUATIONS,
        actions=ACTIONS,
        action_N=a,
        reward_N=drawn_N if reward_N is None else reward_N,
        target_XA=TARGET_XA,
        situation_N=x,
        cluster_N=np.arange(6_000) // 2,
    )


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_learns_what_to_expect(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, a = rng.integers(3, size=6_000), rng.integers(4, size=6_000)
    model_N, target_N = fitted(kind)
    assert np.abs(model_N - EXPECTED_XA[x, a]).mean() < 0.04
    assert np.abs(target_N - (EXPECTED_XA * TARGET_XA).sum(axis=1)[x]).mean() < 0.04


def test_a_row_does_not_tell_on_itself() -> None:
    """Rewards of pure chance: a model that had seen its rows would agree with them."""
    reward_N = (np.random.default_rng(5).random(6_000) < 0.5).astype(float)
    model_N, _ = fitted("boosting", reward_N)
    assert np.corrcoef(model_N, reward_N)[0, 1] < 0.03


def test_one_outcome_is_no_fault() -> None:
    model_N, target_N = fitted("logistic", np.zeros(6_000))
    assert not model_N.any()
    assert not target_N.any()


def test_log_odds_add_up() -> None:
    """The sums of situations and actions are what the model says of every pair."""
    named = ACTIONS.with_columns(action=pl.Series(["0", "1", "2", "3"]))
    x, a = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    pairs = pl.concat([SITUATIONS[x], named[a]], how="horizontal")
    model = reward_model._fit(reward_model.Config(), pairs, np.array([0.0, 1, 1, 1] * 2 + [1, 0, 0, 1]))
    assert not isinstance(model, float)
    found = reward_model._sums(model, SITUATIONS, named)
    assert found.ravel() == pytest.approx(model.predict_proba(pairs)[:, 1], abs=1e-12)
