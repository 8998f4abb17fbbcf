"""Open Bandit as off-policy cases: what one policy's log says of the other, and what the other's own log says.

The evaluation protocol of Saito et al., NeurIPS 2021 Datasets and Benchmarks, https://arxiv.org/abs/2008.07146: the
value of a policy is the mean click of its places; its truth is the mean of the log in which it filled them itself, in
the same week. Neither policy looks at the person, so that a policy is a table of probabilities by place and item.

Thompson sampling has no such table that stays: it learned in that week. Either its average over the week stands for it,
which is how often its own log shows each item at each place (no click is looked at), or, with `prior`, what it did at
first: of each item a click rate is drawn from Beta(alpha, beta), and the three highest are shown. That is the protocol
of the paper; the numbers are in `obp/policy/conf/prior_bts.yaml` of its package.

Shapes: N rows, S places, A items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.datasets import openbandit
from features.datasets._inputs import read_object
from features.errors import InputError
from features.events import ValidLog, validate
from recsys.replay import intervals, reward_model
from recsys.replay.estimators._contract import Floats, Ints, Logged

PLACES = 3
DRAWS = 200_000
"""Draws of all click rates by which the prior's probabilities are counted."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question with a known answer."""

    log: Logged
    source: str
    """The log, for messages."""
    truth: float
    """Mean reward in the target's own log."""
    truth_interval: tuple[float, float]
    """Of that mean: its log is no longer than the other."""
    quarantined: dict[str, int]
    """Rows of the log that were set aside, by reason."""


def case(
    root: Path, campaign: str, policies: tuple[str, str], prior: Path | None, model: reward_model.Config, level: float
) -> Case:
    """What the first policy's log says of the second.

    Args:
        root: the folder of the data set.
        campaign: all, men or women.
        policies: the logging policy and the target.
        prior: JSON of `{campaign: {"alpha": […], "beta": […]}}`; None: Thompson sampling as its log has it.
        model: the reward model.
        level: coverage of the truth's interval.

    Raises:
        InputError: a file is missing or damaged, or the prior has not as many items as the campaign.
    """
    log, own = (
        validate(
            openbandit.load(openbandit.Config.model_validate({"path": root, "campaign": campaign, "policy": name}))
        )
        for name in policies
    )
    items = log.items.sort("item_id")
    target_SA = np.full((PLACES, len(items)), 1 / len(items))
    if policies[1] == "bts":
        target_SA = shown(own, len(items)) if prior is None else thompson(prior, campaign, len(items))
    place_N, item_N, click_N, request_N = columns(log)

    people = log.events.select("user_id").join(log.users, on="user_id", how="left", maintain_order="left")
    rows = people.drop("user_id").with_columns(place=pl.Series(place_N).cast(pl.String))
    situations = rows.unique(maintain_order=True)
    number = situations.with_row_index("number")
    situation_N = rows.join(number, on=rows.columns, how="left", maintain_order="left")["number"].to_numpy()
    place_X = situations["place"].cast(pl.Int64).to_numpy()
    model_N, model_target_N = reward_model.cross_fit(
        model,
        situations=situations,
        actions=items.drop("item_id"),
        action_N=item_N,
        reward_N=click_N,
        target_XA=target_SA[place_X],
        situation_N=situation_N,
        cluster_N=request_N,
    )
    is_uniform = policies[0] == "random"
    own_click_N, own_request_N = columns(own)[2:]
    low, high = intervals.bootstrap(
        np.bincount(own_request_N, own_click_N).astype(np.float64)[:, None],
        np.bincount(own_request_N).astype(np.float64)[:, None],
        level=level,
        replicates=2_000,
        seed=0,
    )
    return Case(
        log=Logged(
            reward_N=click_N,
            propensity_N=log.events["propensity"].cast(pl.Float64).to_numpy(),
            target_N=target_SA[place_N, item_N],
            model_N=model_N,
            model_target_N=model_target_N,
            cluster_N=request_N,
            # Of the uniform policy all probabilities are known, of the other only those of what it showed.
            unsupported_N=np.zeros(len(click_N)) if is_uniform else None,
            weight_bound=float(target_SA.max() * len(items)) if is_uniform else None,
        ),
        source=log_name(campaign, policies),
        truth=float(own_click_N.mean()),
        truth_interval=(float(low[0]), float(high[0])),
        quarantined={str(reason): count for reason, count in log.quarantine["reason"].value_counts().iter_rows()},
    )


def log_name(campaign: str, policies: tuple[str, str]) -> str:
    """For messages."""
    return f"campaign {campaign}, {policies[1]} from the log of {policies[0]}"


def columns(log: ValidLog) -> tuple[Ints, Ints, Floats, Ints]:
    """Place, item, click and request of every row; requests numbered without gaps."""
    events = log.events
    click_N = (events["action"] == "click").cast(pl.Float64).to_numpy()
    request_N = np.unique(events["request_id"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    return events["position"].cast(pl.Int64).to_numpy(), events["item_id"].to_numpy(), click_N, request_N


def shown(log: ValidLog, items: int) -> Floats:
    """How often a log shows each item at each place, `[S, A]`; rows sum to 1."""
    place_N, item_N = columns(log)[:2]
    count_SA = np.bincount(place_N * items + item_N, minlength=PLACES * items).reshape(PLACES, items)
    return count_SA / count_SA.sum(axis=1, keepdims=True)


def thompson(prior: Path, campaign: str, items: int) -> Floats:
    """Probabilities of Bernoulli Thompson sampling before it has learned, `[S, A]`, by simulation.

    Thompson 1933; for lists the highest draws in their order.

    Raises:
        InputError: the file has not these items.
    """
    found = read_object(prior).get(campaign, {})
    try:
        alpha_A, beta_A = (np.asarray(found[name], np.float64) for name in ("alpha", "beta"))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{prior}: '{campaign}' has no lists of numbers 'alpha' and 'beta'; give one of each for every campaign"
        ) from None
    if not len(alpha_A) == len(beta_A) == items:
        raise InputError(
            f"{prior}: '{campaign}' has {len(alpha_A)} alpha and {len(beta_A)} beta for {items} items; give one an item"
        )
    if not (alpha_A > 0).all() or not (beta_A > 0).all():
        raise InputError(f"{prior}: '{campaign}' has an alpha or a beta that is not above 0; mend it")
    rng = np.random.default_rng(0)
    count_SA = np.zeros((PLACES, items))
    for _ in range(20):
        draw_BA = rng.beta(alpha_A, beta_A, (DRAWS // 20, items))
        for place, item_B in enumerate(np.argsort(-draw_BA, axis=1)[:, :PLACES].T):
            count_SA[place] += np.bincount(item_B, minlength=items)
    return count_SA / count_SA.sum(axis=1, keepdims=True)
