"""Simulated people who come for feeds and react to them by their true preferences.

Who comes when, and the chances that decide about clicks, are the same for every policy: what differs between
policies is what they show. R requests of a round, S positions of a feed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.datasets._world import DEVICES
from features.datasets.synthetic import ACTIONS, EVENT_SCHEMA, World
from features.online import Event
from recsys.inference import Recommender, Request, Response

HOUR_MS = 3_600_000
TOGETHER = 128
"""Requests at most that are answered together; nobody is twice among them, so that every click is known to the next
request of the same person."""

_VISITS, _REACTIONS = 10, 11
"""Random streams of the world; its own and its log's come before them."""


@dataclass(frozen=True)
class Visits:
    """Who asks for a feed in a round, in the order of time."""

    round: int
    user_R: np.ndarray
    """int64"""
    timestamp_R: np.ndarray
    """int64, Unix time in ms."""
    device_R: np.ndarray
    """int8, places in `DEVICES`."""


@dataclass(frozen=True)
class Outcome:
    """What a round has brought a policy."""

    clicks: float
    """Clicks of a feed, mean."""
    expected: float
    """Their expectation, from the true preferences for what was shown."""
    shown: int
    """Different items that were shown."""
    log: pl.DataFrame
    """What was shown and what came of it; columns of `EVENT_SCHEMA`."""


def together(user_R: np.ndarray) -> Iterator[slice]:
    """Stretches of requests that can be answered together: nobody is twice in one."""
    first, met = 0, set[int]()
    for place, user in enumerate(user_R.tolist()):
        if user in met or len(met) == TOGETHER:
            yield slice(first, place)
            first, met = place, set()
        met.add(user)
    yield slice(first, len(user_R))


def visits(world: World, number: int, feeds: int, hours: float) -> Visits:
    """The requests of a round, which follows the world's log or the round before.

    Args:
        world: its people come as often as they did in its log.
        number: of the round, from 0.
        feeds: requests of a round.
        hours: length of a round.
    """
    rng = world.generator(_VISITS, number)
    begins, length = world.config.end_ms + int(number * hours * HOUR_MS), int(hours * HOUR_MS)
    # No two at one moment, so that the order of time is the order of rows.
    timestamp_R = begins + np.sort(rng.choice(length, feeds, replace=False)).astype(np.int64)
    user_R = rng.choice(world.config.users, feeds, p=world.activity_U / world.activity_U.sum())
    return Visits(number, user_R, timestamp_R, world.device_U[user_R])


def play(world: World, recommender: Recommender, coming: Visits, *, learns: bool) -> Outcome:
    """Show a feed at every visit, and draw what comes of it.

    Args:
        world: its people.
        recommender: answers.
        coming: who comes.
        learns: whether the recommender is told of what has been clicked; else it answers as if nothing had happened.
    """
    slate = world.config.slate
    clicks, expected, frames = 0, 0.0, list[pl.DataFrame]()
    for number, part in enumerate(together(coming.user_R)):
        user_R, time_R, device_R = coming.user_R[part], coming.timestamp_R[part], coming.device_R[part]
        requests = [
            Request(user_id=user, k=slate, timestamp=time, context=_context(recommender, device))
            for user, time, device in zip(user_R.tolist(), time_R.tolist(), device_R.tolist(), strict=True)
        ]
        item_RS, propensity_RS = shown(recommender.recommend_many(requests), slate)
        preference_RS = np.where(item_RS >= 0, world.preference(user_R[:, None], item_RS.clip(0), time_R[:, None]), 0.0)
        rng = world.generator(_REACTIONS, coming.round, number)
        action_RS, value_RS = world.reactions(rng, preference_RS)
        clicks += int((action_RS > 0).sum())
        expected += float((preference_RS * world.examination(np.arange(slate))).sum())
        # Far from the ids of the world's own log.
        request_R = ((1 + coming.round) << 32) + np.arange(part.start, part.stop)
        rows = _rows(user_R, time_R, device_R, request_R, item_RS, propensity_RS, action_RS, value_RS)
        frames.append(rows)
        if learns:
            recommender.observe(events_of(rows))
    feeds = len(coming.user_R)
    log = pl.concat(frames)
    return Outcome(clicks / feeds, expected / feeds, log["item_id"].n_unique(), log)


def shown(responses: Sequence[Response], slate: int) -> tuple[np.ndarray, np.ndarray]:
    """The items of feeds, −1 where a feed is shorter, and the chances that they had; int64 and float32 [R, S]."""
    item_RS = np.full((len(responses), slate), -1, dtype=np.int64)
    propensity_RS = np.ones((len(responses), slate), dtype=np.float32)
    for row, response in enumerate(responses):
        for place, item in enumerate(response.items):
            item_RS[row, place] = item.item_id
            propensity_RS[row, place] = 1.0 if item.propensity is None else item.propensity
    return item_RS, propensity_RS


def events_of(log: pl.DataFrame) -> list[Event]:
    """What happened, from rows of a log; impressions that nothing came of are left out."""
    rows = log.filter(pl.col("action") != ACTIONS[0]).select("user_id", "item_id", "timestamp", "action", "value")
    return [Event(**row) for row in rows.iter_rows(named=True)]


def _context(recommender: Recommender, device: int) -> dict[str, str]:
    return {"device": DEVICES[device]} if "device" in recommender.context_columns else {}


def _rows(
    user_R: np.ndarray,
    time_R: np.ndarray,
    device_R: np.ndarray,
    request_R: np.ndarray,
    item_RS: np.ndarray,
    propensity_RS: np.ndarray,
    action_RS: np.ndarray,
    value_RS: np.ndarray,
) -> pl.DataFrame:
    """Feeds and reactions as rows of the world's log; places that are empty make none."""
    slate = item_RS.shape[1]
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(user_R, slate),
            "item_id": item_RS.ravel(),
            "timestamp": np.repeat(time_R, slate),
            "action": pl.Series(ACTIONS).gather(action_RS.ravel()),
            "value": pl.Series(value_RS.ravel()).fill_nan(None),
            "request_id": np.repeat(request_R, slate),
            "position": np.tile(np.arange(slate, dtype=np.int32), len(user_R)),
            "propensity": propensity_RS.ravel(),
            "device": pl.Series(DEVICES).gather(np.repeat(device_R, slate)),
        },
        schema=EVENT_SCHEMA,
    )
    return frame.filter(pl.col("item_id") >= 0)
