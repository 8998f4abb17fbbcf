"""What a log alone says of policies: its held-out tail replayed request by request through each of them.

A policy is asked for a feed wherever the logging policy was, with all that had been clicked before; then it is told
what was clicked. What the log says of a policy are the places of these clicks in its feeds, and, since the log has
propensities, an estimate of the clicks that its own feeds would have had.

R logged requests, S positions, U people.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.datasets.synthetic import ACTIONS, World
from features.examples import PART
from recsys.inference import Recommender, Request
from recsys.replay.estimators import slate_iips
from recsys.replay.estimators._contract import Slates
from recsys.replay.simulation.population import events_of, shown, together


@dataclass(frozen=True)
class Holdout:
    """The logged requests of a test part, in the order of time."""

    user_R: np.ndarray
    """int64"""
    timestamp_R: np.ndarray
    """int64, Unix time in ms."""
    device_R: np.ndarray
    """text"""
    item_RS: np.ndarray
    """int64: what was shown."""
    propensity_RS: np.ndarray
    """float64: how likely that was."""
    click_RS: np.ndarray
    """float64: 1 where it was clicked."""
    log: pl.DataFrame
    """The rows."""
    before: pl.DataFrame
    """Rows of the test part before the first of them: of a request that the split has cut in two."""

    @property
    def slate(self) -> int:
        """S, positions of a feed."""
        return self.item_RS.shape[1]


@dataclass(frozen=True)
class Judged:
    """One policy on a holdout, by request."""

    feed_RS: np.ndarray
    """int64: what it would have shown; −1 where its feed is shorter."""
    clicks_R: np.ndarray
    """float64: clicks of the log."""
    found_R: np.ndarray
    """float64: of these, how many were of items in the policy's feed."""
    gain_R: np.ndarray
    """float64: and the same with the discount of their places, 1 / log2(place + 1)."""
    estimate_R: np.ndarray
    """float64: independent IPS of lists: clicks times `weight_RS`, whose mean estimates the policy's clicks a feed."""
    weight_RS: np.ndarray
    """float64: 1 / propensity where the policy shows what was logged at that place, else 0."""


def cut(world: World, log: pl.DataFrame, examples: Path) -> Holdout:
    """The whole requests of the test part of a prepared log.

    Args:
        world: whose log it is; all requests have as many rows as its slates have positions.
        log: all rows, in the order of time.
        examples: directory of the split.
    """
    part = np.load(examples / PART)
    assert len(part) == log.height, "a simulated log has no row that is refused"
    tail = log.filter(pl.Series(part == 2))
    whole = pl.len().over("request_id") == world.config.slate
    rows = tail.filter(whole)
    shape = (-1, world.config.slate)
    first = rows.gather_every(world.config.slate)
    return Holdout(
        user_R=first["user_id"].to_numpy(),
        timestamp_R=first["timestamp"].to_numpy(),
        device_R=first["device"].to_numpy(),
        item_RS=rows["item_id"].to_numpy().reshape(shape),
        propensity_RS=rows["propensity"].to_numpy().astype(np.float64).reshape(shape),
        click_RS=(rows["action"] != ACTIONS[0]).to_numpy().astype(np.float64).reshape(shape),
        log=rows,
        before=tail.filter(~whole),
    )


def judge(recommender: Recommender, holdout: Holdout) -> Judged:
    """Replay a holdout through a policy that stands where the test part begins; it ends knowing all of it."""
    recommender.observe(events_of(holdout.before))
    slate = holdout.slate
    feeds: list[np.ndarray] = []
    for part in together(holdout.user_R):
        users, times = holdout.user_R[part].tolist(), holdout.timestamp_R[part].tolist()
        asks_device = "device" in recommender.context_columns
        requests = [
            Request(user_id=user, k=slate, timestamp=time, context={"device": device} if asks_device else {})
            for user, time, device in zip(users, times, holdout.device_R[part].tolist(), strict=True)
        ]
        feeds.append(shown(recommender.recommend_many(requests), slate)[0])
        recommender.observe(events_of(holdout.log[part.start * slate : part.stop * slate]))
    feed_RS = np.concatenate(feeds)
    same_RSS = holdout.item_RS[:, :, None] == feed_RS[:, None, :]
    gain_RS = (same_RSS / np.log2(2.0 + np.arange(slate))).sum(2)
    lists = Slates(
        reward_RS=holdout.click_RS,
        propensity_RS=holdout.propensity_RS,
        target_RS=(holdout.item_RS == feed_RS).astype(np.float64),
    )
    return Judged(
        feed_RS=feed_RS,
        clicks_R=holdout.click_RS.sum(1),
        found_R=(holdout.click_RS * same_RSS.any(2)).sum(1),
        gain_R=(holdout.click_RS * gain_RS).sum(1),
        estimate_R=slate_iips.terms(lists, np.inf).value_N,
        weight_RS=lists.weight_RS,
    )
