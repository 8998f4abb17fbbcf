import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recsys.metrics import auc, coverage, grouped_auc, next_item_metrics, pointwise_metrics, rank_of


def test_next_item_metrics_of_known_ranks():
    found = next_item_metrics(np.array([1, 3, 7, np.inf]))
    assert found == pytest.approx(
        {
            "recall@5": 2 / 4,
            "recall@10": 3 / 4,
            "ndcg@5": (1 + 1 / 2) / 4,  # log2(1 + 1) = 1, log2(3 + 1) = 2
            "ndcg@10": (1 + 1 / 2 + 1 / 3) / 4,  # log2(7 + 1) = 3
            "mrr": (1 + 1 / 3 + 1 / 7) / 4,
        }
    )


def test_a_cut_includes_its_own_rank():
    assert next_item_metrics(np.array([5.0]))["recall@5"] == 1
    assert next_item_metrics(np.array([5.5]))["recall@5"] == 0  # the mean rank of a tie over the cut
    assert next_item_metrics(np.array([10.0]))["recall@10"] == 1


def test_ranks_by_hand():
    out, nan = -np.inf, np.nan
    score_BI = np.array(
        [[3, 9, 5, 1], [5, 9, 5, 1], [4, 4, 4, 4], [out, 9, 5, out], [9, 5, out, 1], [nan, nan, nan, nan]],
        dtype=np.float32,
    )
    place = np.array([[2], [2], [2], [2], [2], [2]])
    # second; second and third tied; all four tied; second of two; left out; no number, which must not win
    assert rank_of(score_BI, place).tolist() == [2, 2.5, 2.5, 2, np.inf, np.inf]


def test_no_questions_give_zeros():
    assert set(next_item_metrics(np.array([])).values()) == {0.0}


def test_coverage_does_not_count_the_empty_place():
    assert coverage(np.array([[1, 2], [2, 0]]), items=4) == 0.5


@pytest.mark.parametrize("levels", [2, 5, 10_000], ids=["ties everywhere", "many ties", "few ties"])
def test_auc_and_gauc_against_sklearn(levels: int):
    rng = np.random.default_rng(levels)
    group = rng.integers(0, 12, 600)
    score = rng.integers(0, levels, 600) / levels
    label = (rng.random(600) < 0.2 + 0.5 * score).astype(np.float32)
    label[group == 0], label[group == 1] = 0.0, 1.0  # groups of one class have no AUC
    mixed = [g for g in range(12) if 0 < label[group == g].mean() < 1]
    assert len(mixed) == 10

    by_group = [roc_auc_score(label[group == g], score[group == g]) for g in mixed]
    assert auc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert grouped_auc(score, label, group) == pytest.approx(
        np.average(by_group, weights=[(group == g).sum() for g in mixed]), abs=1e-12
    )


def test_auc_by_hand():
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    assert auc(score, label) == 3.5 / 4  # of four pairs three are won and one is tied
    assert auc(np.full(4, 0.5), label) == 0.5
    assert math.isnan(auc(score, np.ones(4)))
    assert math.isnan(grouped_auc(score, np.ones(4), np.zeros(4)))


def test_ne_and_calibration_in_closed_form():
    label = np.array([1.0, 0.0, 0.0, 0.0])
    user = np.zeros(4, dtype=np.int64)

    base_rate = pointwise_metrics(np.full(4, 0.25), label, user)
    assert base_rate["ne"] == pytest.approx(1.0)
    assert base_rate["calibration"] == pytest.approx(1.0)

    half = pointwise_metrics(np.full(4, 0.5), label, user)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert half["logloss"] == pytest.approx(math.log(2))
    assert half["ne"] == pytest.approx(math.log(2) / entropy)
    assert half["calibration"] == pytest.approx(2.0)


def test_logloss_against_sklearn_and_at_certainty():
    rng = np.random.default_rng(0)
    p, label, user = rng.random(100), rng.integers(0, 2, 100).astype(np.float32), np.arange(100) % 7
    assert pointwise_metrics(p, label, user)["logloss"] == pytest.approx(log_loss(label, p))

    certain = pointwise_metrics(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1, 1]))
    assert certain["auc"] == 0.0
    assert np.isfinite(certain["logloss"])
