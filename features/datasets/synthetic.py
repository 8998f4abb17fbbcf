"""A simulated world and the log that its logging policy left: any size, seeded, with a truth that can be asked for.

Users with drifting tastes come in sessions, look at slates from top to bottom, click, like and share; the policy that
fills the slates is known exactly, and so is the probability of every click (`_world.py` has the formulas). That makes
it the measuring stick for off-policy estimators, scaling curves and pipelines of many millions of events.

The log is simulated in blocks of time, each with its own random stream: it can be read in chunks of any size, in
bounded memory, and is the same log. A small one: `recsys prepare CONFIG.toml --dataset.kind synthetic`.

Shapes: R requests of a block, S positions of a slate, K categories, I items.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.datasets._world import DEVICES, Floats, Ints, LatentWorld
from features.datasets._world import Config as Config
from features.events import DAY_MS, PART_ROWS, Part, RawLog

ACTIONS = ("impression", "click", "like", "share")
"""The strongest feedback that an impression got, weakest first."""

EVENT_SCHEMA = pl.Schema(
    {
        "user_id": pl.Int64,
        "item_id": pl.Int64,
        "timestamp": pl.Int64,
        "action": pl.String,
        "value": pl.Float64,
        "request_id": pl.Int64,
        "position": pl.Int32,
        "propensity": pl.Float32,
        "device": pl.String,
    }
)
"""The columns of the log. `value` is the dwell time in seconds, null where nobody clicked."""

BLOCK_ROWS = 1 << 16
"""Expected rows of a block. It is part of what a seed means: another size gives another log of the same world."""

MIN_GAP_MS = 5_000
"""The least time between two requests of a session; the random part comes on top."""

OWN_DEVICE = 0.85
"""Chance that a session is held on the user's own device, not on a random one."""

DWELL_SPREAD = 0.8
"""Standard deviation of the logarithm of dwell times of equal preference."""

_STREAM = 3
"""The log's random stream; the world's own come before it."""

_HOUR = np.linspace(0, 24, 1_441)
_ARRIVED = _HOUR / 24 + 0.8 / (2 * np.pi) * (np.sin(2 * np.pi * (_HOUR - 20) / 24) + np.sin(2 * np.pi * 20 / 24))
_ARRIVED[[0, -1]] = 0, 1
"""Share of a day's sessions begun by each minute: the rate is 1 + 0.8 cos, highest at 20:00 UTC."""


class World(LatentWorld):
    """A built world: `preference`, `expected_click` and `policy` tell the truth, `events` and `chunks` the log."""

    def events(self) -> pl.DataFrame:
        """The whole log in time order; columns as in `EVENT_SCHEMA`, one row an impression."""
        return pl.concat(self._blocks(), rechunk=True)

    def chunks(self, rows: int) -> Iterator[pl.DataFrame]:
        """The log of `events` in frames of `rows` rows (the last may be shorter); holds one frame and one block."""
        if rows <= 0:
            raise ValueError(f"rows = {rows} must be positive; 1_000_000 is a good size")
        held = EVENT_SCHEMA.to_frame()
        for block in self._blocks():
            held = pl.concat([held, block])
            while held.height >= rows:
                yield held.head(rows).rechunk()
                held = held.slice(rows)
        if held.height:
            yield held.rechunk()

    def reactions(
        self, rng: np.random.Generator, preference_RS: Floats
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """What people do with slates, drawn: for each position a place in `ACTIONS`, and the dwell time.

        Args:
            rng: the draws of clicks come first and are as many as positions, so that slates of one shape share them.
            preference_RS: of the item at each position, top first; 0 where there is none.

        Returns:
            int8 `[R, S]`; float32 `[R, S]`, seconds, NaN where nobody clicked.
        """
        config, shape_RS = self.config, preference_RS.shape
        # One draw against falling thresholds: who shares has liked, who likes has clicked.
        draw_RS = rng.random(shape_RS)
        click_RS = preference_RS * self.examination(np.arange(int(shape_RS[1])))
        like_RS = click_RS * preference_RS * config.like_share
        action_RS = (draw_RS < click_RS).astype(np.int8)
        action_RS += draw_RS < like_RS
        action_RS += draw_RS < like_RS * config.forward_share

        value_RS = np.full(shape_RS, np.nan, np.float32)
        clicked_N = preference_RS[action_RS > 0]
        noise_N = DWELL_SPREAD * rng.standard_normal(len(clicked_N))
        value_RS[action_RS > 0] = config.dwell_seconds * clicked_N * np.exp(noise_N)
        return action_RS, value_RS

    def _blocks(self) -> Iterator[pl.DataFrame]:
        config = self.config
        parts = ceil(config.events / config.days / BLOCK_ROWS)
        sessions = config.events / (config.days * parts * config.slate * config.requests)
        activity_U = np.cumsum(self.activity_U)
        request_id = 0
        shelf: _Shelf | None = None
        pending = _Requests(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8))
        for day in range(config.days):
            midnight = config.start_ms + day * DAY_MS
            known = int(self.known_items(midnight))
            if shelf is None or shelf.known != known:
                shelf = _Shelf(self, known)
            for part in range(parts):
                rng = self.generator(_STREAM, day, part)
                # Blocks are of equal traffic, not of equal time.
                fresh = rng.random(rng.poisson(sessions))
                begun = midnight + _time_of_day((part + fresh) / parts)
                requests = pending.merge(self._sessions(rng, begun, activity_U))
                due = int(np.searchsorted(requests.timestamp, midnight + _time_of_day(np.array((part + 1) / parts))))
                pending = requests.take(slice(due, None))
                yield self._impressions(rng, requests.take(slice(due)), shelf, request_id)
                request_id += due

    def _sessions(self, rng: np.random.Generator, begun: Ints, activity_U: Floats) -> "_Requests":
        """The requests of the sessions that begin at `begun`, session by session."""
        config, count = self.config, len(begun)
        height: Floats = rng.random(count) * activity_U[-1]
        user = np.searchsorted(activity_U, height, side="right")
        is_own = rng.random(count) < OWN_DEVICE
        device = np.where(is_own, self.device_U[user], rng.integers(len(DEVICES), size=count, dtype=np.int8))
        length = rng.geometric(1 / config.requests, count)
        session = np.repeat(np.arange(count), length)
        gap = MIN_GAP_MS + rng.exponential(config.gap_minutes * 60_000, len(session)).astype(np.int64)
        since = np.cumsum(gap)
        first = np.cumsum(length) - length
        return _Requests(user[session], begun[session] + since - since[first][session], device[session])

    def _impressions(
        self, rng: np.random.Generator, requests: "_Requests", shelf: "_Shelf", request_id: int
    ) -> pl.DataFrame:
        """Fill the slates of the requests and let the users react."""
        config, shape_RS = self.config, (len(requests.user), self.config.slate)
        days_R = self.days_since_start(requests.timestamp)
        taste_RD = self.taste(requests.user, days_R)
        item_RS, propensity_RS = shelf.fill(rng, self.category_tilt(taste_RD), config.slate)

        affinity_RS = np.einsum("rd,rsd->rs", taste_RD, self.vector_ID[item_RS])
        preference_RS = self.click_probability(affinity_RS, item_RS, days_R[:, None])
        action_RS, value_RS = self.reactions(rng, preference_RS)

        ids = np.arange(request_id, request_id + shape_RS[0])
        return pl.DataFrame(
            {
                "user_id": np.repeat(requests.user, config.slate),
                "item_id": item_RS.ravel(),
                "timestamp": np.repeat(requests.timestamp, config.slate),
                "action": pl.Series(ACTIONS).gather(action_RS.ravel()),
                "value": pl.Series(value_RS.ravel()).fill_nan(None),
                "request_id": np.repeat(ids, config.slate),
                "position": np.tile(np.arange(config.slate, dtype=np.int32), shape_RS[0]),
                "propensity": propensity_RS.ravel(),
                "device": pl.Series(DEVICES).gather(np.repeat(requests.device, config.slate)),
            },
            schema=EVENT_SCHEMA,
        )


class _Requests(NamedTuple):
    """Requests as columns of equal length."""

    user: Ints
    timestamp: Ints
    device: NDArray[np.int8]

    def take(self, which: Ints | slice) -> "_Requests":
        return _Requests(self.user[which], self.timestamp[which], self.device[which])

    def merge(self, later: "_Requests") -> "_Requests":
        """Both in stable time order."""
        both = _Requests(
            np.concatenate([self.user, later.user]),
            np.concatenate([self.timestamp, later.timestamp]),
            np.concatenate([self.device, later.device]),
        )
        return both.take(np.argsort(both.timestamp, kind="stable"))


class _Shelf:
    """The logging policy's sampler over the items that it knows on a day; `LatentWorld.policy` is its closed form."""

    def __init__(self, world: LatentWorld, known: int) -> None:
        self.known = known
        self._world = world
        category = world.category_I[:known]
        self._order = np.argsort(category, kind="stable")
        self._heap = np.cumsum(world.popularity_I[self._order])
        end_K = np.cumsum(np.bincount(category, minlength=world.config.categories))
        self._last_K = end_K - 1
        edge = np.concatenate([[0.0], self._heap])[np.concatenate([[0], end_K])]
        self._low_K, self._mass_K = edge[:-1], np.diff(edge)

    def fill(self, rng: np.random.Generator, tilt_RK: Floats, slate: int) -> tuple[Ints, NDArray[np.float32]]:
        """Draw each position of each slate independently: a category for the user, then an item of it by popularity.

        Returns:
            Item ids int64 `[R, S]` and the probabilities with which they were drawn, float32 `[R, S]`.
        """
        explore, shape_RS = self._world.config.exploration, (len(tilt_RK), slate)
        cumulative_RK = np.cumsum(tilt_RK * self._mass_K, axis=1)
        total_R1 = cumulative_RK[:, -1:]
        draw_RS = rng.random(shape_RS) * total_R1
        category_RS = np.zeros(shape_RS, np.int64)
        for column in cumulative_RK.T[:-1]:
            category_RS += draw_RS >= column[:, None]
        height_RS = self._low_K[category_RS] + rng.random(shape_RS) * self._mass_K[category_RS]
        place_RS = np.searchsorted(self._heap, height_RS, side="right")
        # A height rounded up onto the category's edge would be the next category's first item.
        item_RS = self._order[np.minimum(place_RS, self._last_K[category_RS])]

        is_random_RS = rng.random(shape_RS) < explore
        item_RS = np.where(is_random_RS, (rng.random(shape_RS) * self.known).astype(np.int64), item_RS)
        tilt_RS = np.take_along_axis(tilt_RK, self._world.category_I[item_RS], axis=1)
        greedy_RS = self._world.popularity_I[item_RS] * tilt_RS / total_R1
        return item_RS, (explore / self.known + (1 - explore) * greedy_RS).astype(np.float32)


def _time_of_day(arrived: Floats) -> Ints:
    """The time, ms after midnight, by which a share of the day's sessions has begun."""
    return (np.interp(arrived, _ARRIVED, _HOUR) * (DAY_MS / 24)).astype(np.int64)


def inputs(config: Config) -> list[Path]:
    """No files: the world comes from the config alone."""
    return []


def load(config: Config) -> RawLog:
    """Build the world; its log is simulated as it is read, in bounded memory."""
    world = World(config)
    source = f"synthetic world, seed {config.seed}"
    parts = (
        Part(name=f"{source}, part {number}", read=lambda frame=frame: frame)
        for number, frame in enumerate(world.chunks(PART_ROWS))
    )
    return RawLog(parts=parts, items=world.items(), users=world.users(), source=source)
