"""Logs of the synthetic world with all that an off-policy estimate needs, and the truth that it is to find.

The world stands still (no drift, no seasons, no new items) and sessions are single requests, so that requests are
independent draws and what the target is worth has a closed form:

    V = Σ_u activity_u Σ_s examination(s) Σ_a π(a | u) preference(u, a)          by list; a place's is V / S

Shapes: U users, A items, S places, N rows.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from features.datasets.synthetic import Config, World
from recsys.replay import reward_model
from recsys.replay.estimators._contract import Floats, Logged, Slates
from recsys.replay.estimators._slates import slates

PLACES = 3


class Simulated(NamedTuple):
    """A log and the truth."""

    log: Logged
    lists: Slates
    value: float
    """Mean reward of a place under the target."""


def simulate(seed: int, *, requests: int, exploration: float) -> Simulated:
    """A log of about so many requests, by a policy that explores to that degree."""
    world = World(
        Config(
            users=200,
            items=30,
            events=requests * PLACES,
            seed=seed,
            days=1,
            categories=6,
            new_items=0,
            slate=PLACES,
            requests=1,
            drift=0,
            trend=0,
            exploration=exploration,
        )
    )
    events, start = world.events(), world.config.start_ms
    preference_UA = world.preference_all(np.arange(200), start)
    target_UA = _target(preference_UA)
    user_N, item_N, place_N = (events[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "position"))
    reward_N = (events["action"] != "impression").cast(pl.Float64).to_numpy()
    logging_UA = world.policy(np.arange(200), start)

    people = world.users().select("age_group", "country")[np.repeat(np.arange(200), PLACES)]
    situations = people.with_columns(place=pl.Series(np.tile(np.arange(PLACES), 200)).cast(pl.String))
    items = world.items().select("price", category=pl.col("categories").list.first())
    model_N, model_target_N = reward_model.cross_fit(
        reward_model.Config(seed=seed),
        situations=situations,
        actions=items,
        action_N=item_N,
        reward_N=reward_N,
        target_XA=np.repeat(target_UA, PLACES, axis=0),
        situation_N=user_N * PLACES + place_N,
        cluster_N=events["request_id"].to_numpy(),
    )
    log = Logged(
        reward_N=reward_N,
        propensity_N=events["propensity"].cast(pl.Float64).to_numpy(),
        target_N=target_UA[user_N, item_N],
        model_N=model_N,
        model_target_N=model_target_N,
        cluster_N=events["request_id"].to_numpy(),
        weight_bound=float((target_UA / logging_UA).max()),
    )
    share_U = world.activity_U / world.activity_U.sum()
    value = share_U @ (target_UA * preference_UA).sum(axis=1) * world.examination(np.arange(PLACES)).mean()
    return Simulated(log, slates(log, events["request_id"].to_numpy(), place_N), float(value))


def _target(preference_UA: Floats) -> Floats:
    """A policy that knows what people like, and shows anything once in five times."""
    odds_UA = preference_UA / (1 - preference_UA)
    return 0.2 / odds_UA.shape[1] + 0.8 * odds_UA / odds_UA.sum(axis=1, keepdims=True)
