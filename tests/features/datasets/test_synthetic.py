"""The synthetic world against its own closed forms: what is recorded, drawn and clicked is what the formulas say."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from scipy.stats import chi2

from features import registry
from features.datasets import synthetic
from features.datasets.synthetic import ACTIONS, EVENT_SCHEMA, Config, World
from features.errors import InputError
from features.events import validate

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(Config(users=500, items=800, events=300_000, seed=7, days=10))


@pytest.fixture(scope="module")
def events(world: World) -> pl.DataFrame:
    return world.events()


def small(**settings: Any) -> World:
    defaults: dict[str, Any] = {"users": 50, "items": 80, "events": 5_000, "days": 3, "categories": 6}
    return World(Config(**defaults | settings))


def assert_counts_match(counts: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's chi-square over the cells that expect 5 or more, the rest as one; fails one honest run in 10,000."""
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    predicted = np.append(expected[~rare], expected[rare].sum())
    kept = predicted > 0
    statistic = np.sum((observed[kept] - predicted[kept]) ** 2 / predicted[kept])
    assert counts[expected == 0].sum() == 0
    assert chi2.sf(statistic, kept.sum() - 1) > 1e-4


def test_passes_validation_whole() -> None:
    module = registry.load("features.datasets", "synthetic", "dataset.kind")
    config = module.Config(users=200, items=300, events=20_000)
    log = validate(module.load(config))
    assert module.inputs(config) == []
    assert log.quarantine.is_empty()
    assert log.events.drop("row").schema == EVENT_SCHEMA
    assert log.items.height == 300
    assert log.users.height == 200
    assert log.items.null_count().sum_horizontal().item() == 0
    assert log.items["categories"].list.len().is_between(1, 3).all()
    assert log.items["categories"].list.n_unique().eq(log.items["categories"].list.len()).all()


def test_the_seed_decides() -> None:
    first, again, other = small(), small(), small(seed=1)
    assert_frame_equal(first.events(), again.events())
    assert_frame_equal(first.events(), first.events())
    assert_frame_equal(first.items(), again.items())
    assert not first.events().equals(other.events())
    assert not first.items().equals(other.items())


def test_a_longer_log_is_of_the_same_world() -> None:
    short, long = small(), small(events=20_000)
    assert_frame_equal(short.items(), long.items())
    assert_frame_equal(short.users(), long.users())
    users = np.arange(50)
    noon = short.config.start_ms + DAY_MS // 2
    np.testing.assert_array_equal(short.preference_all(users, noon), long.preference_all(users, noon))


def test_chunks_are_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 500)  # several blocks a day
    world = small()
    whole = world.events()
    assert whole["timestamp"].is_sorted()
    assert whole["request_id"].is_sorted()
    assert whole.height == pytest.approx(5_000, rel=0.2)
    for rows in (97, 1_000, 1_000_000):
        chunks = list(world.chunks(rows))
        assert {chunk.height for chunk in chunks[:-1]} <= {rows}
        assert_frame_equal(pl.concat(chunks), whole)


def test_recorded_propensity_is_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 500)
    world = small(new_items=0.9, events=20_000, drift=30)
    events = world.events()
    policy = world.policy(events["user_id"].to_numpy(), events["timestamp"].to_numpy())
    np.testing.assert_allclose(policy.sum(axis=1), 1)
    recorded = events["propensity"].to_numpy()
    np.testing.assert_allclose(policy[np.arange(events.height), events["item_id"].to_numpy()], recorded, rtol=1e-6)


@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_draws_follow_the_policy(exploration: float) -> None:
    # Without drift the policy of a user is the same all day long.
    world = small(users=2, events=60_000, drift=0, activity=0, exploration=exploration, new_items=0.5)
    for (user, day), shown in (
        world.events()
        .with_columns(day=(pl.col("timestamp") - world.config.start_ms) // DAY_MS)
        .group_by("user_id", "day")
    ):
        policy = world.policy([user], world.config.start_ms + day * DAY_MS)[0]
        assert_counts_match(np.bincount(shown["item_id"], minlength=80), shown.height * policy)


def test_positions_are_filled_alike() -> None:
    world = small(users=1, events=40_000, drift=0, days=1, slate=4)
    policy = world.policy([0], world.config.start_ms)[0]
    for _, shown in world.events().group_by("position"):
        assert_counts_match(np.bincount(shown["item_id"], minlength=80), shown.height * policy)


def test_clicks_are_calibrated(world: World, events: pl.DataFrame) -> None:
    ids = [events[name].to_numpy() for name in ("user_id", "item_id", "position", "timestamp")]
    expected = world.expected_click(*ids)
    clicked = (events["action"] != "impression").to_numpy()
    for part in np.array_split(np.argsort(expected), 20):
        deviation = np.sqrt(np.sum(expected[part] * (1 - expected[part])))
        assert abs(clicked[part].sum() - expected[part].sum()) < 4.5 * deviation


def test_preferences_agree(world: World) -> None:
    users, later = np.arange(20), world.config.end_ms
    every = world.preference_all(users, later)
    np.testing.assert_allclose(world.preference(users[:, None], np.arange(800), later), every, rtol=1e-6)
    np.testing.assert_array_equal(world.preference(3, 5, later), world.expected_click(3, 5, 0, later))


def test_stronger_feedback_is_rarer_and_dwell_needs_a_click(world: World, events: pl.DataFrame) -> None:
    counts = dict(events["action"].value_counts().iter_rows())
    assert [counts[action] for action in ACTIONS] == sorted(counts.values(), reverse=True)
    assert events.filter(pl.col("value").is_null())["action"].unique().to_list() == ["impression"]
    clicks = events.filter(pl.col("action") != "impression")
    assert clicks["value"].is_not_null().all()
    assert (clicks["value"] > 0).all()

    ids = [clicks[name].to_numpy() for name in ("user_id", "item_id", "timestamp")]
    preference = world.preference(*ids)
    likes = clicks["action"].is_in(["like", "share"]).sum()
    expected = world.config.like_share * preference.sum()
    assert likes == pytest.approx(expected, abs=4.5 * np.sqrt(expected))
    log_dwell = np.log(clicks["value"].to_numpy() / preference / world.config.dwell_seconds)
    assert log_dwell.mean() == pytest.approx(0, abs=4.5 * synthetic.DWELL_SPREAD / np.sqrt(clicks.height))


def test_position_bias_is_the_power_law(events: pl.DataFrame, world: World) -> None:
    by_position = events.group_by("position").agg(rate=(pl.col("action") != "impression").mean()).sort("position")
    rate = by_position["rate"].to_numpy()
    np.testing.assert_allclose(rate / rate[0], world.examination(np.arange(10)), rtol=0.1)


def test_popularity_is_zipf() -> None:
    world = small(items=1_000, events=300_000, policy_strength=0, exploration=0, new_items=0, zipf=1.2)
    counts = np.sort(world.events()["item_id"].value_counts()["count"].to_numpy())[::-1][:100]
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.05)


def test_items_are_shown_only_from_the_midnight_after_their_creation(world: World, events: pl.DataFrame) -> None:
    shown = events.join(world.items(), on="item_id", validate="m:1")
    midnight = pl.col("timestamp") - (pl.col("timestamp") - world.config.start_ms) % DAY_MS
    assert shown.select((pl.col("created_at") < midnight).all()).item()
    assert (shown["created_at"] >= world.config.start_ms).any()
    assert world.items()["created_at"].is_sorted()


def test_tastes_drift(world: World) -> None:
    users, start = np.arange(500), world.config.start_ms
    days = np.array([0, 5, 10])
    tastes = [world.taste(users, np.full(500, day)) for day in days]
    cosine = [np.mean(np.sum(tastes[0] * taste, axis=1)) for taste in tastes]
    # The mean of cos(speed · t) over normally distributed speeds.
    np.testing.assert_allclose(cosine, np.exp(-(np.deg2rad(world.config.drift * days) ** 2) / 2), atol=0.01)
    still = small(drift=0, trend=0)
    moments = (start, start + 5 * DAY_MS)
    assert (still.preference_all([0], moments[0]) == still.preference_all([0], moments[1])).all()
    assert (world.preference_all([0], moments[0]) != world.preference_all([0], moments[1])).any()


def test_text_foretells_preference() -> None:
    world = small(users=1, items=3_000, trend=0, quality=0, new_items=0)
    preference = world.preference_all([0], world.config.start_ms)[0]
    words = world.items().select("item_id", word=pl.col("text").str.extract_all(r"[a-z]{6}")).explode("word")
    bag = words.with_columns(one=pl.lit(1.0)).pivot("word", index="item_id", values="one", aggregate_function="sum")
    x, y = bag.drop("item_id").fill_null(0).to_numpy(), np.log(preference / (1 - preference))
    train, held_out = slice(0, 2_000), slice(2_000, 3_000)
    weights = np.linalg.lstsq(x[train], y[train])[0]
    error = y[held_out] - np.dot(x[held_out], weights)
    assert 1 - np.var(error) / np.var(y[held_out]) > 0.6


@pytest.mark.parametrize("attribute", ["country", "age_group"])
def test_attributes_say_a_little_about_taste(attribute: str) -> None:
    world = small(users=3_000, items=20, trend=0)
    preference = np.log(world.preference_all(np.arange(3_000), world.config.start_ms))
    groups = world.users()[attribute].to_numpy()
    means = np.array([preference[groups == group].mean(axis=0) for group in np.unique(groups)])
    explained = means.var(axis=0).mean() / preference.var(axis=0).mean()
    assert 0.01 < explained < 0.4


def test_sessions(events: pl.DataFrame, world: World) -> None:
    requests = events.group_by("request_id").agg(pl.len(), pl.col("user_id", "timestamp", "device").first())
    assert (requests["len"] == world.config.slate).all()
    by_hour = requests.group_by(pl.col("timestamp") // 3_600_000 % 24).len().sort("timestamp")["len"]
    assert by_hour[20] > 4 * by_hour[8]
    by_user = np.sort(requests["user_id"].value_counts()["count"].to_numpy())
    assert by_user[-50:].sum() > 0.25 * by_user.sum()


@pytest.mark.parametrize(
    "setting",
    [{"users": 0}, {"dim": 3}, {"new_items": 1.0}, {"exploration": 1.5}, {"position_bias": -1}, {"zipff": 1}],
    ids=str,
)
def test_wrong_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**setting)


@pytest.mark.parametrize("settings", [{"items": 1}, {"users": 1}, {"categories": 1}, {"slate": 1, "requests": 1}])
def test_the_smallest_worlds(settings: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {"items": 5, "users": 3, "events": 100, "days": 2, "new_items": 0}
    log = synthetic.load(Config(**defaults | settings))
    assert validate(log).quarantine.is_empty()


def test_strangers_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="user_id = -1 is not of this world"):
        world.preference([-1], [0], world.config.start_ms)
    with pytest.raises(InputError, match="before the first item"):
        world.policy([0], 0)
