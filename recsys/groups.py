"""Groups of people and of questions, and how well each is served: by activity, by item, by what is known of people.

    known = people_groups(users)                 # column → the group of each row
    found = quality(ranks, {"gender": groups})   # metrics of each group, beside those of all others

A group of fewer than `FEW` is counted and not judged: its figures would say more of a few people than of the group.
Q questions, one right item each.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm

from recsys.metrics import next_item_metrics

FEW = 20
"""Questions, or people, from which a group is judged."""
MOST = 25
"""Different values from which a text says too little about groups to be one."""
QUARTERS = 4
DAY_MS = 86_400_000
AGES = ((1, "under a day"), (7, "a day to a week"), (30, "a week to a month"), (np.inf, "more than a month"))
"""Days since an item was first met → what it is called."""
TIDY = ("user_id", "index", "user_index", "user_code")
"""Columns of people's tables that are no property of theirs."""
METRIC = "ndcg@10"


def people_groups(users: pl.DataFrame) -> dict[str, pl.Series]:
    """The group of each row by each column that makes groups: few texts, yes or no, or a number in quarters.

    Args:
        users: `user_id` and what is known of people; `null` is the group `not known`.
    """
    found: dict[str, pl.Series] = {}
    for name, dtype in users.schema.items():
        column = users[name]
        if name in TIDY or column.null_count() == users.height:
            continue
        if dtype.is_numeric() and column.n_unique() > MOST:
            found[name] = quarters(column)
        elif (dtype in (pl.String, pl.Boolean, pl.Categorical) or dtype.is_numeric()) and column.n_unique() <= MOST:
            found[name] = column.cast(pl.String).fill_null("not known")
    return found


def quarters(values: pl.Series) -> pl.Series:
    """The quarter of each number, named by its least and greatest; texts, in which all of a value are together."""
    rank = values.rank("max") / values.len()
    quarter = (rank * QUARTERS).ceil().cast(pl.Int8).fill_null(0)
    frame = pl.DataFrame({"value": values, "quarter": quarter})
    ends = frame.with_columns(
        pl.col("value").min().over("quarter").alias("low"), pl.col("value").max().over("quarter").alias("high")
    )
    return pl.Series(
        values.name,
        [
            "not known" if value is None else (f"{low:,.6g}" if low == high else f"{low:,.6g} to {high:,.6g}")
            for value, _, low, high in ends.iter_rows()
        ],
        dtype=pl.String,
    )


def question_groups(
    questions: pl.DataFrame, users: pl.DataFrame, interactions: pl.DataFrame, *, has_clock: bool
) -> dict[str, pl.Series]:
    """The group of each question of a leave-one-out split, by everything that makes groups.

    Args:
        questions: `user_id`, `item_index` (0: not in the vocabulary), `timestamp`.
        users: `user_id` and what is known of people.
        interactions: all that is known before the questions: `user_id`, `item_index`, `timestamp`.
        has_clock: whether times are times.

    Returns:
        `activity`, the interactions that a person has had; `item popularity`; `item age`, since it was first met,
        where there is a clock; and each of `people_groups`.
    """
    events = interactions.group_by("user_id").len("events")
    items = interactions.group_by("item_index").agg(pl.len().alias("met"), pl.col("timestamp").min().alias("first_ms"))
    # Ties are broken by the index, so that the same log makes the same groups.
    items = items.filter(pl.col("item_index") > 0).sort("item_index")
    place = pl.col("met").rank("ordinal", descending=True) / pl.len()
    items = items.with_columns(
        pl.when(place <= 0.1)
        .then(pl.lit("the most popular tenth"))
        .when(place <= 0.5)
        .then(pl.lit("the rest of the first half"))
        .otherwise(pl.lit("the less popular half"))
        .alias("popularity")
    )
    joined = questions.select("user_id", "item_index", "timestamp")
    joined = joined.join(events, on="user_id", how="left", maintain_order="left")
    joined = joined.join(items, on="item_index", how="left", maintain_order="left")
    found = {
        "activity": quarters(joined["events"].fill_null(0)),
        "item popularity": joined["popularity"].fill_null("never met before"),
    }
    if has_clock:
        days = ((joined["timestamp"] - joined["first_ms"]) / DAY_MS).to_list()
        found["item age"] = pl.Series("age", ["never met before" if day is None else _age(day) for day in days])
    of_people = pl.DataFrame({"user_id": users["user_id"], **people_groups(users)})
    joined = questions.select("user_id").join(of_people, on="user_id", how="left", maintain_order="left")
    return found | {name: joined[name].fill_null("not known") for name in of_people.columns[1:]}


def quality(rank_Q: np.ndarray, groups: Mapping[str, pl.Series]) -> dict[str, list[dict[str, Any]]]:
    """Next-item metrics of each group, and whether it is served otherwise than all others together.

    Args:
        rank_Q: of the right item, inf where it was not found.
        groups: what makes groups → the group of each question.

    Returns:
        By what makes them, the smallest number or the largest group first: `group`, `questions`, and where these are
        `FEW` or more the metrics, `low` and `high` of `METRIC` (95 %), and `gap`: its difference from all others if
        that is more than chance gives (Welch's test; 5 % for all groups of the answer together, after Bonferroni),
        else None.
    """
    gain_Q = np.where(rank_Q <= 10, 1.0 / np.log2(rank_Q + 1.0), 0.0)
    codes = {name: np.unique(series.to_numpy().astype(str), return_inverse=True) for name, series in groups.items()}
    judged = sum(int((np.bincount(place) >= FEW).sum()) for _, place in codes.values())
    limit = float(norm.ppf(1 - 0.025 / max(judged, 1)))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (titles, place_Q) in codes.items():
        rows = [_judged(str(title), place_Q == number, rank_Q, gain_Q, limit) for number, title in enumerate(titles)]
        numbers = [re.match(r"\d+", row["group"].replace(",", "")) for row in rows]
        # What is counted in numbers stands in their order, all else with the largest first.
        counted = [number is not None for number in numbers].count(True) > 1
        places = [
            float(number[0]) if counted and number else -float(row["questions"])
            for number, row in zip(numbers, rows, strict=True)
        ]
        found[name] = [rows[place] for place in np.argsort(places, kind="stable")]
    return found


def _judged(title: str, mine_Q: np.ndarray, rank_Q: np.ndarray, gain_Q: np.ndarray, limit: float) -> dict[str, Any]:
    row: dict[str, Any] = {"group": title, "questions": int(mine_Q.sum())}
    if row["questions"] < FEW:
        return row
    own, others = gain_Q[mine_Q], gain_Q[~mine_Q]
    error = own.std(ddof=1) / np.sqrt(len(own))
    row |= next_item_metrics(rank_Q[mine_Q])
    row |= {"low": max(float(own.mean() - 1.96 * error), 0.0), "high": float(own.mean() + 1.96 * error), "gap": None}
    if len(others) >= FEW:
        spread = np.hypot(error, others.std(ddof=1) / np.sqrt(len(others)))
        gap = float(own.mean() - others.mean())
        row["gap"] = gap if abs(gap) > limit * spread else None
    return row


def _age(days: float) -> str:
    return next(title for most, title in AGES if days < most)
