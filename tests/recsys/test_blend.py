"""The blend: answers known in advance, what holds for every feed, chances that are as they are logged, its cost."""

import time
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.errors import InputError
from features.labels import FittedTask
from features.schema import Schema
from recsys.blend import Blend, Config, Places
from recsys.diversity import OWN

CATEGORIES, ITEMS, NOW = 6, 300, 1_700_000_000_000
TASKS = ["like"]
RNG = np.random.default_rng(4)


def items_of(categories: list[list[str]]) -> pl.DataFrame:
    """A catalogue; row 0 is no item."""
    count = len(categories) + 1
    return pl.DataFrame(
        {"index": range(count), "item_id": range(count), "categories": [None, *categories]},
        schema_overrides={"categories": pl.List(pl.String)},
    )


WORLD = items_of(
    [[f"c{code}" for code in RNG.choice(CATEGORIES, RNG.integers(0, 4), replace=False)] for _ in range(ITEMS)]
)
EVERYTHING = {
    "diversity": {"kind": "mmr", "strength": 0.4},
    "caps": {"most": 4},
    "exploration": {"slots": [2, 5], "pool": 12},
}


def blend(items: pl.DataFrame, tasks: list[str] = TASKS, numbers: tuple[str, ...] = (), **config: Any) -> Blend:
    """For a ranker with these tasks, of which some are numbers."""
    others = tuple(FittedTask(name=name, source=name, at_least=None if name in numbers else 1.0) for name in tasks[1:])
    schema = Schema(features=(), label=tasks[0], tasks=others, items=ITEMS, users=1)
    return Blend(Config.model_validate(config), items, schema)


def fill(made: Blend, value_BR: np.ndarray, items_BR: np.ndarray, count: int, time_ms: int = NOW) -> Places:
    users = list(range(len(value_BR)))
    return made.fill(value_BR, items_BR, users, np.full(len(value_BR), time_ms), count)


def shown(made: Blend, values: list[float], count: int | None = None) -> list[int]:
    """The feed of one request that has retrieved items 1, 2, …, in their order."""
    items_BR = np.arange(1, len(values) + 1)[None]
    places = fill(made, np.array([values], dtype=np.float32), items_BR, len(values) if count is None else count)
    return [int(items_BR[0, r]) for r in places.candidates_BK[0] if r >= 0]


def questions(requests: int, retrieved: int, hidden: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random values, the last `hidden` of which are −inf, and items; [B, R] each."""
    items_BR = np.argsort(RNG.random((requests, ITEMS)), axis=1)[:, :retrieved] + 1
    value_BR = RNG.standard_normal((requests, retrieved)).astype(np.float32)
    value_BR[:, retrieved - hidden :] = -np.inf
    return value_BR, items_BR


def test_a_value_is_the_retrievers_score_and_the_log_of_the_probability():
    score_BR = np.array([[2.0, 1.0, -np.inf]], dtype=np.float32)
    probability_BR = np.array([[0.1, 0.5, 0.9]], dtype=np.float32)
    expected = score_BR + np.log(probability_BR)
    np.testing.assert_array_equal(blend(WORLD).values(score_BR, probability_BR[..., None]), expected)
    np.testing.assert_array_equal(blend(WORLD).values(score_BR, None), score_BR)
    weighted = blend(WORLD, retriever_weight=0.0, ranker_weight=2.0).values(score_BR, probability_BR[..., None])
    np.testing.assert_allclose(weighted, [[2 * np.log(0.1), 2 * np.log(0.5), -np.inf]], rtol=1e-6)
    assert np.isfinite(blend(WORLD).values(score_BR[:, :1], np.zeros((1, 1, 1), dtype=np.float32))).all()


def test_tasks_weigh_what_the_config_says_and_the_first_one_alone_without_it():
    score_BR = np.zeros((1, 2), dtype=np.float32)
    probability_BRT = np.array([[[0.5, 0.2, 0.7], [0.4, 0.9, 0.6]]], dtype=np.float32)
    tasks = ["click", "like", "share"]
    np.testing.assert_allclose(blend(WORLD, tasks).values(score_BR, probability_BRT), np.log([[0.5, 0.4]]), rtol=1e-6)
    weighted = blend(WORLD, tasks, weights={"like": 3.0, "click": -0.5}).values(score_BR, probability_BRT)
    np.testing.assert_allclose(weighted, 3 * np.log([[0.2, 0.9]]) - 0.5 * np.log([[0.5, 0.4]]), rtol=1e-6)
    numbers = blend(WORLD, tasks, ("share",), weights={"share": 2.0}).values(score_BR, probability_BRT)
    np.testing.assert_allclose(numbers, 2 * probability_BRT[..., 2], rtol=1e-6)
    with pytest.raises(InputError, match=r"recommend\.blend\.weights\.clik = 1\.0 names no task; known: click, like"):
        blend(WORLD, tasks, weights={"clik": 1.0})


def test_an_empty_config_orders_by_value_and_ties_as_they_were_retrieved():
    value_BR, items_BR = questions(5, 40, hidden=3)
    value_BR[:, 7] = value_BR[:, 3]
    places = fill(blend(WORLD), value_BR, items_BR, 40)
    order_BR = np.argsort(-value_BR, axis=1, kind="stable")
    np.testing.assert_array_equal(places.candidates_BK[:, :37], order_BR[:, :37])
    assert (places.candidates_BK[:, 37:] == -1).all()
    assert places.propensities_BK is None


@pytest.mark.parametrize(
    ("strength", "expected"),
    # Item 2 is like item 1, item 3 half of it (cosine 1 / √2), item 4 not at all.
    [
        (0.0, [1, 2, 3, 4]),
        # 2: 0.8 · 2.9 − 0.2 · 1 = 2.12, 3: 0.8 · 2.6 − 0.2 · 0.707 = 1.94, 4: 0.8 · 2 = 1.6.
        (0.2, [1, 2, 3, 4]),
        # 2: 0.6 · 2.9 − 0.4 = 1.34, 3: 0.6 · 2.6 − 0.4 · 0.707 = 1.28, 4: 1.2.
        (0.4, [1, 2, 3, 4]),
        # 2: 0.95, 3: 1.3 − 0.354 = 0.946, 4: 1.0; then 2 before 3, which 4 has half of, too.
        (0.5, [1, 4, 2, 3]),
        # 4 before 3, which is like 1 by half; then 2 costs 1, 3 0.707.
        (1.0, [1, 4, 3, 2]),
    ],
)
def test_mmr_gives_the_order_worked_out_by_hand(strength: float, expected: list[int]):
    world = items_of([["x"], ["x"], ["x", "y"], ["y"]])
    assert shown(blend(world, diversity={"kind": "mmr", "strength": strength}), [3.0, 2.9, 2.6, 2.0]) == expected


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_dpp_takes_what_raises_the_determinant_most(strength: float):
    value_BR, items_BR = questions(3, 25)
    places = fill(blend(WORLD, diversity={"kind": "dpp", "strength": strength}), value_BR, items_BR, 12)
    sets = [set(row or []) for row in WORLD["categories"].to_list()]
    for value_R, items_R, feed_K in zip(value_BR, items_BR, places.candidates_BK, strict=True):
        similar = np.eye(25)
        for a, b in np.ndindex(25, 25):
            one, other = sets[items_R[a]], sets[items_R[b]]
            if a != b and one and other:
                similar[a, b] = (1 - OWN) * len(one & other) / np.sqrt(len(one) * len(other))
        # Chen et al. (2018), equation 14: L = Diag(exp(a r)) · S · Diag(exp(a r)), a = θ / 2(1 − θ), strength = 1 − θ.
        quality = np.exp((1 - strength) / (2 * strength) * value_R.astype(np.float64))
        kernel = quality[:, None] * similar * quality
        chosen: list[int] = []
        for _ in range(12):
            rest = [r for r in range(25) if r not in chosen]
            gains = [np.linalg.slogdet(kernel[np.ix_([*chosen, r], [*chosen, r])])[1] for r in rest]
            chosen.append(rest[int(np.argmax(gains))])
        assert feed_K.tolist() == chosen


def test_caps_pass_over_what_is_full_and_fill_up_when_nothing_else_is_left():
    world = items_of([["x"], ["x"], ["x", "y"], ["y"], [], ["x"], ["y"]])
    values = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert shown(blend(world, caps={"most": 1}), values) == [1, 4, 5, 2, 3, 6, 7]
    assert shown(blend(world, caps={"most": 2}), values) == [1, 2, 4, 5, 7, 3, 6]
    assert shown(blend(world, caps={"most": 7}), values) == [1, 2, 3, 4, 5, 6, 7]
    assert shown(blend(world, caps={"most": 1}), [*values[:3], *[-np.inf] * 4]) == [1, 2, 3]


def test_a_column_may_hold_one_value_an_item():
    world = items_of([[]] * 4).with_columns(brand=pl.Series([None, "a", "a", "b", None]))
    assert shown(blend(world, caps={"by": "brand", "most": 1}), [4.0, 3.0, 2.0, 1.0]) == [1, 3, 4, 2]


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_what_holds_for_every_feed(kind: str):
    made = blend(WORLD, **EVERYTHING | {"diversity": {"kind": kind, "strength": 0.4}})
    value_BR, items_BR = questions(60, 50, hidden=10)
    long, short = fill(made, value_BR, items_BR, 45), fill(made, value_BR, items_BR, 15)
    assert long.propensities_BK is not None
    assert short.propensities_BK is not None
    np.testing.assert_array_equal(long.candidates_BK[:, :15], short.candidates_BK)
    np.testing.assert_array_equal(long.propensities_BK[:, :15], short.propensities_BK)
    assert (long.candidates_BK[:, 40:] == -1).all()
    for feed_K in long.candidates_BK[:, :40]:
        assert sorted(feed_K) == list(range(40)), "something is repeated, or hidden and shown"
    deterministic = np.ones(45, dtype=bool)
    deterministic[[1, 4]] = False
    assert (long.propensities_BK[:, deterministic] == 1).all()
    assert (long.propensities_BK[:, [1, 4]] < 1).all()
    for b in range(5):
        alone = made.fill(value_BR[b : b + 1], items_BR[b : b + 1], [b], np.array([NOW]), 45)
        np.testing.assert_array_equal(alone.candidates_BK[0], long.candidates_BK[b])


def test_a_cap_is_passed_only_where_everything_left_is_full():
    value_BR, items_BR = questions(40, 60)
    places = fill(blend(WORLD, **EVERYTHING), value_BR, items_BR, 60)
    sets = [set(row or []) for row in WORLD["categories"].to_list()]
    for items_R, feed_K in zip(items_BR, places.candidates_BK, strict=True):
        feed = [sets[items_R[r]] for r in feed_K]
        for place, own in enumerate(feed):
            full = {name for name in own if sum(name in above for above in feed[:place]) >= 4}
            if full:
                counts = {f"c{c}": sum(f"c{c}" in above for above in feed[:place]) for c in range(CATEGORIES)}
                assert all(any(counts[name] >= 4 for name in below) for below in feed[place:])


def test_what_no_rule_touches_keeps_its_order():
    value_BR, items_BR = questions(40, 60)
    untouched = np.array([not row for row in WORLD["categories"].to_list()])
    capped = fill(blend(WORLD, caps={"most": 2}), value_BR, items_BR, 60).candidates_BK
    explored = fill(blend(WORLD, exploration=EVERYTHING["exploration"]), value_BR, items_BR, 60).candidates_BK
    by_chance = np.isin(np.arange(60), [1, 4])
    for b in range(40):
        kept = [r for r in capped[b] if untouched[items_BR[b, r]]]
        assert (np.diff(value_BR[b, kept]) <= 0).all()
        assert (np.diff(value_BR[b, explored[b, ~by_chance]]) <= 0).all()


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_items_are_drawn_as_often_as_their_propensities_say(temperature: float | None):
    requests, values = 20_000, np.array([1.0, 0.4, 0.2, -0.3, -0.5, -2.0], dtype=np.float32)
    exploration = {"slots": [1, 3], "pool": 5, "temperature": temperature}
    made = blend(items_of([["x"], ["y"], ["x"], [], [], []]), caps={"most": 1}, exploration=exploration)
    places = fill(made, np.tile(values, (requests, 1)), np.tile(np.arange(1, 7), (requests, 1)), 4)
    assert places.propensities_BK is not None
    feeds, counts = np.unique(places.candidates_BK[:, :3], axis=0, return_counts=True)
    logged = dict(zip(map(tuple, places.candidates_BK[:, :3]), places.propensities_BK[:, :3], strict=True))
    expected = requests * np.array([logged[tuple(feed)].prod() for feed in feeds])
    assert len(feeds) == 10, "five first items, each followed by the best that caps allow and one of the two left"
    assert expected.sum() == pytest.approx(requests), "the chances of all feeds are 1"
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    # By hand: the first place is drawn from five, and what is second is the best that caps allow.
    weights = np.ones(5) if temperature is None else np.exp(values[:5].astype(np.float64) / temperature)
    for first in range(5):
        own = places.propensities_BK[places.candidates_BK[:, 0] == first, 0]
        np.testing.assert_allclose(own, weights[first] / weights.sum())


def test_a_pool_that_is_used_up_leaves_nothing_to_chance():
    value_BR, items_BR = questions(8, 20)
    places = fill(blend(WORLD, exploration={"slots": [1, 2, 3], "pool": 2}), value_BR, items_BR, 4)
    assert places.propensities_BK is not None
    np.testing.assert_array_equal(places.propensities_BK, np.tile([0.5, 1, 1, 1], (8, 1)))


def test_a_request_repeated_gets_the_same_feed_and_another_one_another():
    value_BR, items_BR = questions(50, 60)
    made = blend(WORLD, exploration=EVERYTHING["exploration"])
    first = fill(made, value_BR, items_BR, 10).candidates_BK
    np.testing.assert_array_equal(fill(made, value_BR, items_BR, 10).candidates_BK, first)
    seeded = blend(WORLD, exploration=EVERYTHING["exploration"] | {"seed": 1})
    for other in (fill(made, value_BR, items_BR, 10, NOW + 1), fill(seeded, value_BR, items_BR, 10)):
        assert (other.candidates_BK != first).any(1).mean() > 0.8
    alike = np.tile(value_BR[:1], (50, 1)), np.tile(items_BR[:1], (50, 1))
    assert len(np.unique(fill(made, *alike, 10).candidates_BK, axis=0)) > 20, "people get the same draws"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"exploration": {"slots": [0, 4]}}, r"slots = \[0, 4\]: places are counted from 1"),
        ({"exploration": {"slots": [4, 4]}}, "name each once"),
        ({"exploration": {"slots": [2], "temperature": 0}}, "greater than 0"),
        ({"caps": {"most": 0}}, "greater than 0"),
        ({"diversity": {"strength": 1.5}}, "less than or equal to 1"),
        ({"seen_again_after": "7 days"}, "'7 days' is no duration; write it as 90s, 30m, 24h, 7d or 2w"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        Config.model_validate(config)


def test_columns_that_hold_no_categories_are_refused():
    world = WORLD.with_columns(price=pl.lit(1.0), vector=pl.lit([1.0, 2.0]))
    with pytest.raises(InputError, match=r"recommend\.blend\.caps\.by = 'genre' is not known; use one of: categories"):
        blend(world, caps={"by": "genre", "most": 1})
    for column in ("price", "vector"):
        with pytest.raises(InputError, match=rf"recommend\.blend\.diversity\.by = '{column}' holds .*; name a column"):
            blend(world, diversity={"by": column, "strength": 0.5})


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_a_feed_costs_about_a_millisecond(kind: str):
    items = items_of([[f"c{code}" for code in RNG.choice(18, RNG.integers(1, 5), replace=False)] for _ in range(1000)])
    made = blend(items, **EVERYTHING | {"diversity": {"kind": kind, "strength": 0.4}})
    items_BR = RNG.permutation(1000)[None, :500] + 1
    score_BR, probability_BRT = RNG.standard_normal((1, 500)).astype(np.float32), np.full((1, 500, 1), 0.5, np.float32)
    taken = []
    for _ in range(100):
        started = time.perf_counter()
        fill(made, made.values(score_BR, probability_BRT), items_BR, 20)
        taken.append(time.perf_counter() - started)
    # It is 0.7 ms (mmr) or 0.9 ms (dpp) on a quiet machine; a loop over candidates would take ten times as long.
    assert min(taken) < 3e-3
