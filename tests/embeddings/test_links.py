"""What the graph says of a step: for a training window exactly what the graph of all other windows says of its past."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.histories import Histories, Links
from embeddings.links import Walk
from features.graph import Config, Graph
from recsys.baselines import item_knn
from tests.batches import Lists, flat, histories

ITEMS = 8
EVERY = np.arange(ITEMS + 1)
CONFIGS = [
    Config(),
    Config(shrinkage=0.0, gap=2),
    Config(gap=3, decay=0.5),
    Config(gap=1, directed=True, shrinkage=1.0),
    Config(gap=8, decay=0.7, directed=True),
    Config(gap=2, content=0.3),
]
CATEGORIES = [[], ["a", "b"], ["a"], [], ["b", "c"], ["a", "b", "c"], ["c"], ["d"], []]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_dump_json(exclude_unset=True))


def described() -> tuple[np.ndarray, np.ndarray]:
    """CATEGORIES as ids from 1 on, and their offsets."""
    ids = np.array([ord(name) - ord("a") + 1 for names in CATEGORIES for name in names], dtype=np.int32)
    return ids, np.cumsum([0, *(len(names) for names in CATEGORIES)])


def walk(lists: Lists, config: Config, recency: float = 0.5) -> Walk:
    return Walk(Graph.of(*flat(lists), ITEMS, config, [described()]), recency)


def dense(links: Links, width: int = ITEMS + 1) -> np.ndarray:
    """[N, width]."""
    rows = np.repeat(np.arange(len(links.offsets) - 1), np.diff(links.offsets))
    assert len(set(zip(rows.tolist(), links.candidates.tolist(), strict=True))) == len(rows)
    found = np.zeros((len(links.offsets) - 1, width), dtype=np.float32)
    found[rows, links.candidates] = links.values
    return found


def of_windows(walk: Walk, lists: Lists) -> list[np.ndarray]:
    """[T − 1, I + 1] of each window."""
    values, lengths = flat(lists)
    return np.split(dense(walk.of_windows(values, lengths, EVERY)), np.cumsum(lengths - 1)[:-1])


def of_past(lists: Lists, config: Config, items: list[int]) -> np.ndarray:
    """[I + 1]: what a graph of `lists` says after `items`."""
    return dense(walk(lists, config).of_histories(histories(items), EVERY))[0]


def weights_of(asked: Histories, recency: float) -> np.ndarray:
    """[B, I + 1]: how much each item counts in each history."""
    found = np.zeros((len(asked.lengths_B), ITEMS + 1))
    np.add.at(found, (asked.rows_N, asked.items_N), recency**asked.steps_back_N)
    return found


@pytest.mark.parametrize("content", [0.0, 0.3])
def test_without_a_graphs_own_twists_it_scores_as_item_knn(content: float):
    rng = np.random.default_rng(0)
    met = [rng.permutation(EVERY[1:])[: rng.integers(1, 6)].tolist() for _ in range(40)]
    pairs = [(user, item) for user, items in enumerate(met, start=1) for item in items]
    log = pl.DataFrame(pairs, schema={"user_index": pl.Int32, "item_index": pl.Int32}, orient="row")
    config = item_knn.Config(shrinkage=2.0, decay=0.7, categories=content)
    asked = histories([1], [], [2, 2, 3], [6, 1, 4, 7, 2, 1])
    items = pl.DataFrame(
        {"index": EVERY, "categories": CATEGORIES}, schema_overrides={"categories": pl.List(pl.String)}
    )
    expected = item_knn.fit(config, log, items).scores(asked)
    if content:  # to which an item is like itself
        own = items["categories"].list.len().to_numpy() > 0
        expected -= content * own * weights_of(asked, 0.7)
    found = walk(met, Config(shrinkage=2.0, content=content), recency=0.7).of_histories(asked, EVERY)
    np.testing.assert_allclose(dense(found), expected, atol=1e-6)


@every_config
@settings(max_examples=60, deadline=None)
@given(lists=st.lists(st.lists(st.integers(1, ITEMS), min_size=2, max_size=7), min_size=1, max_size=8))
def test_a_step_sees_what_all_other_windows_say_of_its_past(config: Config, lists: list[list[int]]):
    rows = of_windows(walk(lists, config), lists)
    for place, (items, row_TI) in enumerate(zip(lists, rows, strict=True)):
        others = lists[:place] + lists[place + 1 :]
        assert len(row_TI) == len(items) - 1
        for step, found in enumerate(row_TI):
            np.testing.assert_allclose(found, of_past(others, config, items[: step + 1]), atol=1e-5)


@every_config
def test_a_step_sees_nothing_of_what_follows_it(config: Config):
    rng = np.random.default_rng(1)
    lists = [rng.integers(1, ITEMS + 1, rng.integers(2, 8)).tolist() for _ in range(30)]
    window = [3, 1, 4, 1, 5, 2]
    before = of_windows(walk([*lists, window], config), [window])[0]
    assert before[0].any()
    for step in range(5):
        changed = window[: step + 1] + rng.integers(1, ITEMS + 1, 5 - step).tolist()
        after = of_windows(walk([*lists, changed], config), [changed])[0]
        np.testing.assert_allclose(after[: step + 1], before[: step + 1], atol=1e-5)


def test_a_tie_does_not_tell_of_what_the_window_added():
    # Items 1 … 4 are alike; of three edges of item 1 that are kept, the window alone has made the one to 4 the first.
    alike = (np.array([1, 1, 1, 1], dtype=np.int32), np.array([0, 0, 1, 2, 3, 4, 4, 4, 4, 4]))
    lists = [[1, 7], [1, 7], [1, 7], [1, 7], [1, 4]]
    config = Config(shrinkage=1, content=0.5, neighbours=3)
    found = Walk(Graph.of(*flat(lists), ITEMS, config, [alike]), 0.5).of_windows(*flat(lists), EVERY)
    others = Walk(Graph.of(*flat(lists[:-1]), ITEMS, config, [alike]), 0.5).of_histories(histories([1]), EVERY)
    told, expected = set(np.flatnonzero(dense(found)[-1])), set(np.flatnonzero(dense(others)[0]))
    assert 4 not in expected
    assert told <= expected


@pytest.mark.parametrize("shrinkage", [0.0, 2.0])
def test_likeness_by_content_is_the_same_from_both_ends(shrinkage: float):
    lists = [[1, 2], [5, 6, 1], [3, 8], [6, 2]]
    graph = Graph.of(*flat(lists), ITEMS, Config(shrinkage=shrinkage, content=0.5, neighbours=ITEMS), [described()])
    start = np.repeat(EVERY, np.diff(graph.offsets))
    content = {(a, b): value for a, b, value in zip(start, graph.items, graph.content, strict=True)}
    assert np.isfinite(graph.similarity).all()
    assert any(value > 0 for value in content.values())
    assert all(content.get((b, a)) == pytest.approx(value) for (a, b), value in content.items())


def test_candidates_alone_are_told_of_by_their_places():
    lists = [[1, 2, 3, 4], [2, 3, 5], [1, 3, 4]]
    made = walk(lists, Config())
    whole = dense(made.of_histories(histories([1, 3], [2]), EVERY))
    place_I = np.full(ITEMS + 1, -1)
    place_I[[4, 2]] = 0, 1
    some = made.of_histories(histories([1, 3], [2]), place_I)
    np.testing.assert_array_equal(dense(some, 2), whole[:, [4, 2]])


def test_asking_leaves_nothing_behind_and_room_is_made():
    rng = np.random.default_rng(2)
    lists = [rng.integers(1, ITEMS + 1, rng.integers(2, 8)).tolist() for _ in range(20)]
    made, narrow = walk(lists, Config()), walk(lists, Config())
    narrow._capacity = 1
    first = of_windows(made, lists)
    made.of_histories(histories([1, 2], []), EVERY)
    for again in (of_windows(made, lists), of_windows(narrow, lists)):
        for one, other in zip(again, first, strict=True):
            np.testing.assert_array_equal(one, other)
