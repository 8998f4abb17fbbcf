"""The hidden truth of the synthetic world: who likes what and when, and what the logging policy does about it.

Everything here has a closed form, and nothing is sampled once a world is built:

    taste(u, t)            the user's unit vector, turned by `speed_u · t` in each plane of the latent space
    logit p(u, i, t)     = base + taste_strength · ⟨taste(u, t), vector_i⟩ + quality_i + trend_k(i)(t)
    click at position j  ~ p(u, i, t) · (1 + j) ** -position_bias
    policy(i | u, t)     = ε / N + (1 - ε) · softmax_i(log popularity_i + policy_strength · ⟨taste(u, t), centre_k(i)⟩)

where `k(i)` is the item's first category and N counts the items that the policy knows: those created before the
last midnight (UTC). The policy knows categories, not items, so that there is something left to learn. The click
model is the position-based model: Craswell et al., WSDM 2008, https://doi.org/10.1145/1341531.1341545.

Shapes: U users, I items, K categories, D latent dimensions, W words, B rows asked for.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import TypeAlias, TypeVar

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from features.datasets import _words
from features.errors import InputError
from features.events import DAY_MS
from features.settings import Settings

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
_Float = TypeVar("_Float", np.float32, np.float64)

YEAR_MS = 365 * DAY_MS
WORDS_PER_ITEM = 7
DEVICES = ("mobile", "desktop", "tablet")
AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55+")
AGE_SHARES = (0.25, 0.3, 0.2, 0.15, 0.1)
MOBILE_SHARES = np.array([0.9, 0.8, 0.65, 0.5, 0.35])
"""Share of each age group that mostly holds a phone; the others are at a desk twice as often as on a tablet."""
COUNTRIES = ("US", "IN", "BR", "DE", "JP", "NG")
COUNTRY_SHARES = (0.3, 0.25, 0.15, 0.12, 0.1, 0.08)


class Config(Settings):
    """Size, seed and character of the world.

    Users and items depend on the seed and their own settings only: a world asked for more `events` keeps its
    people and its catalogue, so that runs of different sizes can be compared.
    """

    users: int = Field(default=1_000, gt=0)
    """Number of users; ids are 0 … users - 1."""
    items: int = Field(default=2_000, gt=0)
    """Number of items, new ones included; ids are 0 … items - 1 in order of creation."""
    events: int = Field(default=100_000, gt=0)
    """Expected number of impressions in the whole period; the log's own number varies around it by chance."""
    seed: int = Field(default=0, ge=0)
    """The same seed and settings give the same world and the same log."""
    categories: int = Field(default=20, gt=0, le=_words.MAX_CATEGORIES)
    """Number of item categories; the first ones hold more items."""
    dim: int = Field(default=16, ge=2, multiple_of=2)
    """Dimensions of the latent space of tastes, an even number: tastes turn in planes."""
    start: date = Field(default=date(2024, 1, 1), ge=date(1975, 1, 1), le=date(2090, 1, 1))
    """First day of the log, from midnight UTC."""
    days: int = Field(default=30, gt=0, le=3_650)
    """Length of the log, days."""
    new_items: float = Field(default=0.2, ge=0, lt=1)
    """Share of the items that are created during the period; the others come from the year before it."""
    zipf: float = Field(default=1.0, ge=0, le=5)
    """Exponent of popularity: the logging policy weighs the item of rank r by r ** -zipf."""
    slate: int = Field(default=10, gt=0, le=1_000)
    """Positions of a request. They are filled independently, so that an item may be shown twice in one request."""
    requests: float = Field(default=3.0, ge=1)
    """Mean number of requests of a session (geometric)."""
    gap_minutes: float = Field(default=2.0, gt=0, le=60)
    """Mean time between two requests of a session (exponential), minutes."""
    activity: float = Field(default=1.0, ge=0, le=5)
    """Spread of the users' session rates: standard deviation of their logarithm."""
    exploration: float = Field(default=0.1, ge=0, le=1)
    """Chance that the logging policy fills a position uniformly from all items that it knows."""
    policy_strength: float = Field(default=2.0, ge=0, le=50)
    """How far the logging policy follows a user's taste for categories, logits for a perfect match; 0: not at all."""
    taste_strength: float = Field(default=3.0, ge=0, le=50)
    """How far clicks follow the user's taste, logits for a perfect match; 0: not at all."""
    base_rate: float = Field(default=0.1, gt=0, lt=1)
    """Click probability of an average item, met by a user indifferent to it, at the first position."""
    quality: float = Field(default=0.5, ge=0, le=10)
    """Standard deviation of the items' own appeal, logits; popular items are a little better."""
    position_bias: float = Field(default=0.7, ge=0, le=10)
    """Position j (0-based) is examined with probability (1 + j) ** -position_bias."""
    drift: float = Field(default=1.0, ge=0, le=180)
    """How fast tastes turn: standard deviation over users of the angular speed, degrees a day."""
    trend: float = Field(default=0.3, ge=0, le=10)
    """Amplitude of each category's season (1 to 4 weeks long), logits; the logging policy is blind to it."""
    like_share: float = Field(default=0.4, ge=0, le=1)
    """P(like or share | click) is this times the preference."""
    forward_share: float = Field(default=0.2, ge=0, le=1)
    """P(share | like or share)."""
    dwell_seconds: float = Field(default=60.0, gt=0)
    """Median time that a click on an item of preference 1 lasts, seconds; it is proportional to the preference."""

    @property
    def start_ms(self) -> int:
        """The first moment of the period, Unix time in milliseconds."""
        return int(datetime.combine(self.start, time(), UTC).timestamp()) * 1_000

    @property
    def end_ms(self) -> int:
        """The first moment after the period, Unix time in milliseconds."""
        return self.start_ms + self.days * DAY_MS


class LatentWorld:
    """Users and items with their hidden properties, and exact answers about them."""

    created_at_I: Ints
    """When each item was created, Unix time in milliseconds; ascending."""
    category_I: Ints
    """Each item's first category, 0 … categories - 1."""
    popularity_I: Floats
    """Each item's weight for the logging policy, rank ** -zipf."""
    vector_ID: NDArray[np.float32]
    """The items' unit vectors."""
    activity_U: Floats
    """Each user's relative rate of sessions."""
    device_U: NDArray[np.int8]
    """Each user's own device, a place in `DEVICES`."""

    def __init__(self, config: Config) -> None:
        """Draw the world; time and memory grow with `(users + items) * dim`."""
        self.config = config
        self._draw_categories(self.generator(0))
        self._draw_items(self.generator(1))
        self._draw_users(self.generator(2))

    def generator(self, *stream: int) -> np.random.Generator:
        """An independent source of randomness, the same one for the same `stream` of the same seed."""
        return np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=stream))

    def preference(self, user_ids: ArrayLike, item_ids: ArrayLike, timestamp: ArrayLike) -> Floats:
        """The true probability of a click on an item that is examined, as at position 0.

        Args:
            user_ids: int64, any shape.
            item_ids: int64; broadcast against `user_ids`.
            timestamp: Unix time in milliseconds; a number, or an array that broadcasts too.

        Returns:
            float64 in (0, 1), of the common shape.

        Raises:
            InputError: an id is not of this world.
        """
        users, items, moments = np.broadcast_arrays(self._users(user_ids), self._items(item_ids), timestamp)
        days = self.days_since_start(moments)
        affinity = np.einsum("...d,...d->...", self.taste(users, days), self.vector_ID[items])
        return self.click_probability(affinity, items, days)

    def preference_all(self, user_ids: ArrayLike, timestamp: ArrayLike) -> Floats:
        """`preference` for every item, float64 `[B, I]`, whether or not it has been created yet; for small worlds.

        Args:
            user_ids: int64 `[B]`.
            timestamp: Unix time in milliseconds, one for all or `[B]`.

        Raises:
            InputError: an id is not of this world.
        """
        users, moments = np.broadcast_arrays(self._users(user_ids), timestamp)
        days = self.days_since_start(moments)
        affinity_BI = self.taste(users, days) @ self.vector_ID.T.astype(np.float64)
        return self.click_probability(affinity_BI, np.arange(self.config.items), days[:, None])

    def expected_click(
        self, user_ids: ArrayLike, item_ids: ArrayLike, positions: ArrayLike, timestamp: ArrayLike
    ) -> Floats:
        """The true probability of a click at a position (0-based): `preference` times `examination`.

        All arguments broadcast; see `preference`. A click counts whatever came of it: click, like or share.
        """
        return self.preference(user_ids, item_ids, timestamp) * self.examination(positions)

    def examination(self, positions: ArrayLike) -> Floats:
        """The probability that a position (0-based) is looked at, float64, 1 for position 0."""
        return (1.0 + np.asarray(positions, np.float64)) ** -self.config.position_bias

    def policy(self, user_ids: ArrayLike, timestamp: ArrayLike) -> Floats:
        """The logging policy: the probability of each item at any one position of a request.

        Args:
            user_ids: int64 `[B]`.
            timestamp: Unix time in milliseconds, one for all or `[B]`.

        Returns:
            float64 `[B, I]`; rows sum to one; 0 for items created since the last midnight (UTC) or later.

        Raises:
            InputError: an id is not of this world, or the time is before there were items.
        """
        users, moments = np.broadcast_arrays(self._users(user_ids), np.asarray(timestamp, np.int64))
        known_B = self.known_items(moments)
        if not known_B.all():
            early = moments[known_B == 0][0]
            raise InputError(f"timestamp = {early} is before the first item; use {self.config.start_ms} or later")
        known_BI = np.arange(self.config.items) < known_B[:, None]
        tilt_BK = self.category_tilt(self.taste(users, self.days_since_start(moments)))
        weight_BI = self.popularity_I * tilt_BK[:, self.category_I] * known_BI
        greedy_BI = weight_BI / weight_BI.sum(axis=1, keepdims=True)
        uniform_BI = known_BI / known_BI.sum(axis=1, keepdims=True)
        return self.config.exploration * uniform_BI + (1 - self.config.exploration) * greedy_BI

    def items(self) -> pl.DataFrame:
        """One row an item: `item_id, title, text, categories, created_at, price`.

        `categories` are 1 to 3, the leading one first; `created_at` is Unix time in milliseconds.
        """
        names, vocabulary = _words.names(self.config.categories), _words.vocabulary(self.config.categories)
        words = [vocabulary.gather(column) for column in self._words_IW.T]
        categories = pl.DataFrame(
            {"0": names.gather(self.category_I)}
            | {
                str(n): names.gather(pl.Series(c).replace(-1, None))
                for n, c in enumerate(self._more_categories, start=1)
            }
        )
        return pl.DataFrame(
            {
                "item_id": np.arange(self.config.items),
                "title": _format("{} {}", words[:2]).str.to_titlecase(),
                "text": _format("A {} {} {} with {}, {} and {}.", [*words[2:4], categories["0"], *words[4:]]),
                "categories": categories.select(pl.concat_list(pl.all()).list.drop_nulls()).to_series(),
                "created_at": self.created_at_I,
                "price": self._price_I,
            }
        )

    def users(self) -> pl.DataFrame:
        """One row a user: `user_id, age_group, country`; both say a little about the taste."""
        return pl.DataFrame(
            {
                "user_id": np.arange(self.config.users),
                "age_group": pl.Series(AGE_GROUPS).gather(self._age_U),
                "country": pl.Series(COUNTRIES).gather(self._country_U),
            }
        )

    def days_since_start(self, timestamp: ArrayLike) -> Floats:
        """Unix milliseconds → days since the period's first moment, float64."""
        return (np.asarray(timestamp, np.int64) - self.config.start_ms) / DAY_MS

    def known_items(self, timestamp: ArrayLike) -> Ints:
        """How many items the logging policy knows at a time: ids below this were created before the last midnight."""
        moments = np.asarray(timestamp, np.int64)
        return np.searchsorted(self.created_at_I, moments - (moments - self.config.start_ms) % DAY_MS)

    def taste(self, users: Ints, days: Floats) -> Floats:
        """The users' unit vectors at times in days since the start, float64 `[..., D]`; equal leading shapes."""
        angle = (self._speed_U[users] * days)[..., None]
        cos, sin = np.cos(angle), np.sin(angle)
        across, up = np.split(self._taste_UD[users].astype(np.float64), 2, axis=-1)
        return np.concatenate([across * cos - up * sin, across * sin + up * cos], axis=-1)

    def category_tilt(self, taste_BD: Floats) -> Floats:
        """By what factor the logging policy's weight of an item grows for a user, by category, float64 `[B, K]`."""
        return np.exp(self.config.policy_strength * (taste_BD @ self._centre_KD.T))

    def click_probability(self, affinity: Floats, items: Ints, days: Floats) -> Floats:
        """`preference` from the inner product of taste and item vector; all of one shape, or broadcast."""
        categories = self.category_I[items]
        season = np.sin(2 * np.pi * (days / self._period_K[categories] + self._phase_K[categories]))
        base = np.log(self.config.base_rate / (1 - self.config.base_rate))
        logit = base + self.config.taste_strength * affinity + self._quality_I[items] + self.config.trend * season
        return 1 / (1 + np.exp(-logit))

    def _draw_categories(self, rng: np.random.Generator) -> None:
        k, d = self.config.categories, self.config.dim
        self._centre_KD = _unit(rng.standard_normal((k, d)))
        self._word_vector_WD = rng.standard_normal((k * _words.PER_CATEGORY, d), np.float32) / np.sqrt(
            d, dtype=np.float32
        )
        self._period_K = rng.uniform(7, 28, k)
        self._phase_K = rng.random(k)
        self._price_level_K = rng.normal(np.log(20), 0.6, k)
        size_K = np.arange(1, k + 1) ** -0.5
        self._share_K = size_K / size_K.sum()

    def _draw_items(self, rng: np.random.Generator) -> None:
        config, n, k = self.config, self.config.items, self.config.categories
        new = int(n * config.new_items)
        self.created_at_I = np.sort(
            np.concatenate(
                [
                    rng.integers(config.start_ms - YEAR_MS, config.start_ms, n - new),
                    rng.integers(config.start_ms, config.end_ms, new),
                ]
            )
        )
        self.category_I = rng.choice(k, n, p=self._share_K)
        second, third = rng.choice(k, n, p=self._share_K), rng.choice(k, n, p=self._share_K)
        second = np.where((rng.random(n) < 0.5) & (second != self.category_I), second, -1)
        third = np.where((rng.random(n) < 0.5) & (third != self.category_I) & (third != second), third, -1)
        third = np.where(second >= 0, third, -1)
        self._more_categories = (second, third)

        # Where there is a second category, the text's last two words are of it. Words are part of what an item is,
        # so that its text foretells its vector and a cold start can be won.
        words_IW = rng.integers(_words.PER_CATEGORY, size=(n, WORDS_PER_ITEM), dtype=np.int32)
        owner_IW = np.repeat(self.category_I.astype(np.int32)[:, None], WORDS_PER_ITEM, axis=1)
        owner_IW[:, -2:] = np.where(second >= 0, second, self.category_I)[:, None]
        self._words_IW = owner_IW * _words.PER_CATEGORY + words_IW

        vector_ID = self._centre_KD.astype(np.float32)[self.category_I]
        for share, extra in ((0.5, second), (0.25, third)):
            vector_ID[extra >= 0] += np.float32(share) * self._centre_KD.astype(np.float32)[extra[extra >= 0]]
        for word in self._words_IW.T:
            vector_ID += np.float32(0.7 / np.sqrt(WORDS_PER_ITEM)) * self._word_vector_WD[word]
        vector_ID += np.float32(0.3 / np.sqrt(config.dim)) * rng.standard_normal(vector_ID.shape, np.float32)
        self.vector_ID = _unit(vector_ID)

        appeal_I = rng.standard_normal(n)
        self._quality_I = config.quality * appeal_I
        rank_I = np.empty(n, np.int64)
        rank_I[np.argsort(-(appeal_I + 2 * rng.standard_normal(n)))] = np.arange(1, n + 1)
        self.popularity_I = rank_I.astype(np.float64) ** -config.zipf
        self._price_I = np.exp(rng.normal(self._price_level_K[self.category_I], 0.4)).round(2)

    def _draw_users(self, rng: np.random.Generator) -> None:
        config, n, d = self.config, self.config.users, self.config.dim
        self._age_U = rng.choice(len(AGE_GROUPS), n, p=AGE_SHARES)
        self._country_U = rng.choice(len(COUNTRIES), n, p=COUNTRY_SHARES)
        centre_KD = self._centre_KD.astype(np.float32)
        taste_UD = np.float32(0.3 / np.sqrt(d)) * rng.standard_normal((n, d), np.float32)
        for share in (1.0, 0.6):
            taste_UD += np.float32(share) * centre_KD[rng.choice(config.categories, n, p=self._share_K)]
        for share, group, size in ((0.4, self._age_U, len(AGE_GROUPS)), (0.4, self._country_U, len(COUNTRIES))):
            of_group = _unit(rng.standard_normal((size, d), np.float32))
            taste_UD += np.float32(share) * of_group[group]
        self._taste_UD = _unit(taste_UD)
        self._speed_U = np.deg2rad(config.drift) * rng.standard_normal(n)
        self.activity_U = np.exp(config.activity * rng.standard_normal(n))
        on_mobile = rng.random(n) < MOBILE_SHARES[self._age_U]
        self.device_U = np.where(on_mobile, 0, np.where(rng.random(n) < 2 / 3, 1, 2)).astype(np.int8)

    def _users(self, ids: ArrayLike) -> Ints:
        return _ids("user_id", ids, self.config.users)

    def _items(self, ids: ArrayLike) -> Ints:
        return _ids("item_id", ids, self.config.items)


def _ids(name: str, values: ArrayLike, size: int) -> Ints:
    ids = np.asarray(values, np.int64)
    wrong = (ids < 0) | (ids >= size)
    if wrong.any():
        raise InputError(f"{name} = {ids[wrong][0]} is not of this world; use 0 … {size - 1}")
    return ids


def _unit(vectors: NDArray[_Float]) -> NDArray[_Float]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _format(template: str, columns: Sequence[pl.Series]) -> pl.Series:
    named = pl.DataFrame([column.alias(str(place)) for place, column in enumerate(columns)])
    return named.select(pl.format(template, *named.columns)).to_series()
