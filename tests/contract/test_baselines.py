"""What every file in `recsys/baselines` must do, and what each of them is known to answer."""

from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from features import registry
from features.settings import Settings
from recsys.baselines import item_knn, popularity
from recsys.scorer import Scorer
from tests.batches import histories

BASELINES = [registry.load("recsys.baselines", name, "baselines") for name in registry.known("recsys.baselines")]
every_baseline = pytest.mark.parametrize("module", BASELINES, ids=lambda module: module.__name__.rsplit(".", 1)[1])


def log(*baskets: list[int]) -> pl.DataFrame:
    """What user 1, 2, … has met."""
    pairs = [(user, item) for user, items in enumerate(baskets, start=1) for item in items]
    return pl.DataFrame(pairs, schema={"user_index": pl.Int32, "item_index": pl.Int32}, orient="row")


def vocabulary(items: int, categories: list[list[str]] | None = None) -> pl.DataFrame:
    """`items` items behind row 0, of which nothing is known."""
    frame = pl.DataFrame({"index": np.arange(items + 1)}, schema={"index": pl.Int32})
    if categories is None:
        return frame
    return frame.with_columns(pl.Series("categories", [None, *categories], dtype=pl.List(pl.String)))


def best_unseen(scorer: Scorer, history: list[int]) -> int:
    score_I = np.array(scorer.scores(histories(history))[0])
    score_I[[0, *history]] = -np.inf
    return int(score_I.argmax())


@every_baseline
@pytest.mark.parametrize("described", [True, False], ids=["categories", "ids alone"])
def test_scores_are_finite_and_a_users_own(module: ModuleType, described: bool):
    """For histories with repetitions, empty ones, and an item that nobody has met or described."""
    assert issubclass(module.Config, Settings)
    items = vocabulary(6, [["a"], ["a", "b"], ["b"], [], ["a"], []] if described else None)
    scorer = module.fit(module.Config(), log([1, 2, 2], [2, 3, 0], [3, 4]), items)
    asked = [[1], [], [2, 2, 3], [6], []]
    together = scorer.scores(histories(*asked))
    assert together.shape == (5, 7)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    for row, history in zip(together, asked, strict=True):
        np.testing.assert_allclose(scorer.scores(histories(history))[0], row, rtol=1e-6)
    assert scorer.scores(histories([], [])).shape == (2, 7)


@every_baseline
def test_what_is_saved_scores_the_same(module: ModuleType, tmp_path: Path):
    items = vocabulary(4, [["a"], ["a", "b"], ["b"], []])
    scorer = module.fit(module.Config(), log([1, 2, 2], [2, 3, 0], [3, 4]), items)
    scorer.save(tmp_path)
    asked = histories([1, 2], [], [4])
    np.testing.assert_array_equal(module.load(tmp_path).scores(asked), scorer.scores(asked))


def test_popularity_counts_interactions():
    scorer = popularity.fit(popularity.Config(), log([3, 3, 1, 0], [3, 2], [2, 0, 0, 0]), vocabulary(4))
    np.testing.assert_allclose(scorer.scores(histories([1]))[0], np.log1p([0, 1, 2, 3, 0]), rtol=1e-6)


def test_item_knn_is_shrunk_cosine():
    config = item_knn.Config(shrinkage=2.0, categories=0.0)
    scorer = item_knn.fit(config, log([1, 2], [1, 2], [1, 3], [1, 1]), vocabulary(3))
    # Item 1 was met by four users, item 2 by two of them, item 3 by one; meeting an item twice counts once.
    expected = [0, 0, 2 / (np.sqrt(4 * 2) + 2), 1 / (np.sqrt(4 * 1) + 2)]
    np.testing.assert_allclose(scorer.scores(histories([1]))[0], expected, rtol=1e-6)


def test_item_knn_finds_what_is_missing_from_a_checkerboard():
    """User i has met all items of i's parity but i itself (benfred/implicit's test of recommenders)."""
    size = 20
    baskets = [[j for j in range(1, size + 1) if (i + j) % 2 == 0 and i != j] for i in range(1, size + 1)]
    scorer = item_knn.fit(item_knn.Config(), log(*baskets), vocabulary(size))
    assert [best_unseen(scorer, basket) for basket in baskets] == list(range(1, size + 1))


def test_item_knn_finds_planted_clusters():
    rng = np.random.default_rng(0)
    clusters = [range(1, 11), range(11, 21), range(21, 31)]
    # A fifth of what a user meets is chance.
    baskets = [
        [int(rng.choice(clusters[user % 3])) if rng.random() < 0.8 else int(rng.integers(1, 31)) for _ in range(8)]
        for user in range(600)
    ]
    scorer = item_knn.fit(item_knn.Config(), log(*baskets), vocabulary(30))
    score_BI = np.array(scorer.scores(histories(*([item] for item in range(1, 31)))))
    for item, score_I in enumerate(score_BI, start=1):
        own = clusters[(item - 1) // 10]
        assert set(np.argsort(-score_I)[:9]) == set(own) - {item}


def test_item_knn_listens_to_the_latest_step_most():
    baskets = ([1, 2], [1, 2], [3, 4], [3, 4])
    decayed = item_knn.fit(item_knn.Config(decay=0.5), log(*baskets), vocabulary(4))
    assert best_unseen(decayed, [1, 3]) == 4
    assert best_unseen(decayed, [3, 1]) == 2
    score_I = decayed.scores(histories([1, 3]))[0]
    assert score_I[2] == pytest.approx(score_I[4] / 2)

    level = item_knn.fit(item_knn.Config(decay=1.0), log(*baskets), vocabulary(4))
    assert level.scores(histories([1, 3])).tolist() == level.scores(histories([3, 1])).tolist()


def test_item_knn_reaches_an_item_nobody_met_by_its_categories():
    items = vocabulary(4, [["jazz", "music"], ["rock", "music"], ["jazz", "music"], ["rock", "music"]])
    met = log([1, 2], [1], [2])
    scorer = item_knn.fit(item_knn.Config(), met, items)
    score_I = scorer.scores(histories([1]))[0]
    assert score_I[3] > score_I[4] > 0  # all is music, which says less than jazz does
    deaf = item_knn.fit(item_knn.Config(categories=0.0), met, items)
    assert deaf.scores(histories([1]))[0, 3:].tolist() == [0, 0]
