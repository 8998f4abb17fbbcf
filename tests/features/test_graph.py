"""The co-interaction graph: known answers, what is counted pair by pair, and the cosine of item-based filtering."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.graph import Config, Graph
from recsys.baselines import item_knn
from tests.batches import Lists, flat

LISTS = st.lists(st.lists(st.integers(1, 6), max_size=7), max_size=8)
CONFIGS = st.builds(
    Config, gap=st.integers(1, 8), decay=st.sampled_from([1.0, 0.5]), directed=st.booleans(), shrinkage=st.just(2.0)
)


def graph(lists: Lists, items: int, **config: object) -> Graph:
    return Graph.of(*flat(lists), items, Config.model_validate(config))


def edges(found: Graph) -> dict[tuple[int, int], float]:
    start = np.repeat(np.arange(len(found.counts)), np.diff(found.offsets))
    return dict(zip(zip(start.tolist(), found.items.tolist(), strict=True), found.weights.tolist(), strict=True))


def test_pairs_count_by_their_distance_and_direction():
    met = [[1, 2, 3, 2], [2, 1], [3]]
    directed = graph(met, 3, gap=2, decay=0.5, directed=True)
    assert edges(directed) == {(1, 2): 1.0, (1, 3): 0.5, (2, 3): 1.0, (3, 2): 1.0, (2, 1): 1.0}
    assert directed.counts.tolist() == [0, 2, 3, 2]
    both = {(1, 2): 2.0, (2, 1): 2.0, (1, 3): 0.5, (3, 1): 0.5, (2, 3): 2.0, (3, 2): 2.0}
    assert edges(graph(met, 3, gap=2, decay=0.5)) == both
    # Three steps apart there is one pair more, from 1 to the second 2.
    assert edges(graph(met, 3, gap=3, decay=0.5)) == both | {(1, 2): 2.25, (2, 1): 2.25}


@settings(max_examples=100, deadline=None)
@given(LISTS, CONFIGS)
def test_edges_are_sums_over_pairs_of_steps(lists: Lists, config: Config):
    expected: dict[tuple[int, int], float] = {}
    for items in lists:
        for later, b in enumerate(items):
            for earlier, a in enumerate(items[:later]):
                if a == b or later - earlier > config.gap:
                    continue
                for edge in ((a, b),) if config.directed else ((a, b), (b, a)):
                    expected[edge] = expected.get(edge, 0.0) + config.decay ** (later - earlier - 1)
    found = Graph.of(*flat(lists), 6, config)
    assert edges(found) == pytest.approx(expected)
    assert len(found.offsets) == 8
    for item in range(7):
        near = found.similarity[found.offsets[item] : found.offsets[item + 1]]
        assert (np.diff(near) <= 0).all()


def test_the_most_similar_edges_are_kept():
    # 1 meets 2 three times, 3 twice, and 4 once; 5 once too, but is met so often that it says less.
    met = [[1, 2], [1, 2], [1, 2], [1, 3], [1, 3], [1, 4], [1, 5], *[[5, 6]] * 9]
    found = graph(met, 6, shrinkage=1.0, neighbours=3)
    assert found.items[found.offsets[1] : found.offsets[2]].tolist() == [2, 3, 4]
    assert found.items[found.offsets[5] : found.offsets[6]].tolist() == [6, 1]
    whole = edges(graph(met, 6, shrinkage=1.0))
    assert edges(found) == {edge: weight for edge, weight in whole.items() if edge != (1, 5)}


def test_without_direction_and_decay_it_is_the_cosine_of_item_knn():
    rng = np.random.default_rng(0)
    met = [rng.permutation(np.arange(1, 41))[: rng.integers(1, 15)].tolist() for _ in range(200)]
    found = graph(met, 40, gap=50, shrinkage=3.0)
    pairs = [(user, item) for user, items in enumerate(met, start=1) for item in items]
    log = pl.DataFrame(pairs, schema={"user_index": pl.Int32, "item_index": pl.Int32}, orient="row")
    knn = item_knn.fit(item_knn.Config(shrinkage=3.0, categories=0.0), log, pl.DataFrame({"index": range(41)}))
    ours = np.zeros((41, 41), dtype=np.float32)
    ours[np.repeat(np.arange(41), np.diff(found.offsets)), found.items] = found.similarity
    np.testing.assert_allclose(ours, knn.similarity_II.toarray(), rtol=1e-6)


def test_it_comes_back_from_a_file(tmp_path: Path):
    made = graph([[1, 2, 3], [2, 3]], 4, decay=0.5)
    made.save(tmp_path / "graph.npz")
    found = Graph.load(tmp_path / "graph.npz", made.config)
    for name in ("offsets", "items", "weights", "counts"):
        assert getattr(found, name).dtype == getattr(made, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
