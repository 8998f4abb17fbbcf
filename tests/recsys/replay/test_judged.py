"""Metrics of feeds by answers known in advance."""

import numpy as np
import polars as pl
import pytest

from recsys.metrics import next_item_metrics
from recsys.replay import exposure, judged, tastes


def test_one_right_item_gives_the_metrics_of_batch_evaluation() -> None:
    rng = np.random.default_rng(0)
    shown = np.stack([rng.permutation(np.arange(1, 31))[:10] for _ in range(500)])
    right = rng.integers(1, 31, size=(500, 1))
    hit = shown == right
    rank = np.where(hit.any(1), 1.0 + hit.argmax(1), np.inf)
    found = judged.accuracy(shown, right, (5, 10))
    expected = next_item_metrics(rank)
    for name in ("recall@5", "ndcg@5", "recall@10", "ndcg@10"):
        assert found[name].mean() == pytest.approx(expected[name], abs=1e-12)
    assert found["mrr@10"].mean() == pytest.approx(expected["mrr"], abs=1e-12)
    assert np.array_equal(found["map@10"], found["mrr@10"])


def test_several_right_items() -> None:
    shown = np.array([[7, 3, 9, 4, 0]])
    # 3 and 4 are found at places 2 and 4; 8 is not; 3 twice counts once.
    found = judged.accuracy(shown, np.array([[3, 8, 4, 3]]), (2, 5))
    assert found["recall@5"][0] == pytest.approx(2 / 3)
    assert found["recall@2"][0] == pytest.approx(1 / 3)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert found["ndcg@5"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert found["mrr@5"][0] == pytest.approx(1 / 2)
    assert found["map@5"][0] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert found["map@2"][0] == pytest.approx((1 / 2) / 2)


def test_what_comes_next_is_the_persons_own() -> None:
    right = judged.right_items(np.array([5, 6, 7, 8]), np.array([0, 1, 0, 0]), 2)
    assert right.tolist() == [[5, 7], [6, 0], [7, 8], [8, 0]]


def test_exposure() -> None:
    shown = np.array([[1, 2], [1, 3], [1, 0]])
    count = exposure.exposures(shown, 4)
    assert count.tolist() == [3, 1, 1, 0]
    assert exposure.coverage(count) == 3 / 4
    assert exposure.gini(np.array([2, 2, 2])) == pytest.approx(0)
    assert exposure.gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)
    # Half of all interactions is one bit, a quarter two; what nobody met counts as met once.
    assert exposure.self_information(np.array([4, 2, 1, 0])).tolist() == [1, 2, 3, 3]
    assert exposure.popularity_ranks(np.array([5, 9, 5, 1])).tolist() == [2.5, 1, 2.5, 4]
    means = exposure.mean_of(np.array([10.0, 20.0, 40.0]), np.array([[1, 3], [2, 0], [0, 0]]))
    assert means[:2].tolist() == [25, 20]
    assert np.isnan(means[2])


def test_diversity_and_calibration_by_categories() -> None:
    rows, names = tastes.category_rows(pl.Series([None, ["a"], ["a"], ["b"], ["a", "b"], []]))
    assert names == ["a", "b"]
    assert rows[4].tolist() == [0.5, 0.5]
    found = tastes.diversity(np.array([[1, 2], [1, 3], [1, 4], [1, 5]]), rows)
    assert found[:3] == pytest.approx([0, 1, 1 - np.sqrt(0.5)])
    assert np.isnan(found[3])
    # A history of three a and one b; a feed of the same proportions, one of a alone.
    history = np.array([[3.0, 1.0], [3.0, 1.0], [0.0, 0.0]])
    found = tastes.miscalibration(np.array([[1, 4], [1, 2], [1, 2]]), history, rows)
    assert found[0] == pytest.approx(0, abs=1e-12)
    only = 0.75 * np.log(0.75 / (0.99 + 0.01 * 0.75)) + 0.25 * np.log(0.25 / (0.01 * 0.25))
    assert found[1] == pytest.approx(only)
    assert np.isnan(found[2])


def test_sums_of_what_was_met_before() -> None:
    value = np.array([[1.0], [10.0], [2.0], [4.0]])
    before = tastes.met_before(value, np.array([1, 0, 1, 1]), np.array([[100.0], [7.0]]))
    assert before[:, 0].tolist() == [7, 100, 8, 10]
