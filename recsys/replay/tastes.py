"""Feeds by their categories: how different their items are, and how well they keep the proportions of a history.

E events, K places, G categories, I items; a row of `category_IG` holds an item's share of each of its categories (all
zero where it has none), row 0 is that of no item.
"""

import numpy as np
import polars as pl

MOST = 64
"""Categories that are told apart; rarer ones are one."""

SMOOTHED = 0.01
"""Share of the history that is mixed into the feed's distribution, so that no lack of a category costs infinity."""


def category_rows(categories: pl.Series) -> tuple[np.ndarray, list[str]]:
    """Items' shares of categories, and the names of these, most frequent first.

    Args:
        categories: a list for each item code, null or empty for none.
    """
    pairs = pl.DataFrame({"code": range(len(categories)), "name": categories}).explode("name", empty_as_null=False)
    pairs = pairs.drop_nulls().unique(maintain_order=True)
    names = pairs["name"].value_counts().sort("count", "name", descending=[True, False])["name"].to_list()
    kept = names if len(names) <= MOST else [*names[: MOST - 1], "others"]
    place = {name: min(number, len(kept) - 1) for number, name in enumerate(names)}
    rows = np.zeros((len(categories), len(kept)), dtype=np.float32)
    if pairs.height:
        column = np.array([place[name] for name in pairs["name"]])
        np.add.at(rows, (pairs["code"].to_numpy(), column), 1.0)
    total = rows.sum(1, keepdims=True)
    return np.divide(rows, total, out=rows, where=total > 0), kept


def diversity(shown_EK: np.ndarray, category_IG: np.ndarray) -> np.ndarray:
    """Intra-list distance: mean over pairs of 1 − cosine of their categories; NaN with fewer than two; float64 [E]."""
    norm = np.linalg.norm(category_IG, axis=1, keepdims=True)
    unit_IG = np.divide(category_IG, norm, out=np.zeros_like(category_IG), where=norm > 0)
    found: list[np.ndarray] = []
    for part in _parts(shown_EK):
        items = (norm[:, 0] > 0)[part].sum(1)
        sum_EG = unit_IG[part].sum(1, dtype=np.float64)
        # The square of a sum of unit vectors counts each pair twice, and each vector with itself.
        cosine = ((sum_EG**2).sum(1) - items) / np.maximum(items * (items - 1), 1)
        found.append(np.where(items > 1, 1 - cosine, np.nan))
    return np.concatenate(found)


def miscalibration(shown_EK: np.ndarray, history_EG: np.ndarray, category_IG: np.ndarray) -> np.ndarray:
    """KL divergence of the feed's categories from the history's, in nats; 0 is calibrated (Steck, RecSys 2018).

    Args:
        shown_EK: feeds.
        history_EG: sums of the categories of what each person had met; any scale.
        category_IG: of the items.

    Returns:
        float64 [E]; NaN where history or feed has no category.
    """
    found: list[np.ndarray] = []
    for part, history in zip(_parts(shown_EK), _parts(history_EG), strict=True):
        q, p = category_IG[part].sum(1, dtype=np.float64), history.astype(np.float64)
        known = (q.sum(1) > 0) & (p.sum(1) > 0)
        q, p = (x / np.where(known, x.sum(1), 1)[:, None] for x in (q, p))
        mixed = (1 - SMOOTHED) * q + SMOOTHED * p
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * np.log(p / mixed), 0.0)
        found.append(np.where(known, terms.sum(1), np.nan))
    return np.concatenate(found)


def met_before(value_EX: np.ndarray, user_E: np.ndarray, start_UX: np.ndarray) -> np.ndarray:
    """For each event, the sum of a value over what its person had met before.

    Args:
        value_EX: of each event's item, in the order of time; [E, X].
        user_E: person codes.
        start_UX: the sums when the log begins; [U, X].
    """
    order = np.argsort(user_E, kind="stable")
    sums = np.cumsum(value_EX[order], axis=0, dtype=np.float64) - value_EX[order]
    user = user_E[order]
    first = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
    sums -= np.repeat(sums[first], np.diff(np.append(first, len(user))), axis=0)
    found = np.empty_like(sums)
    found[order] = sums + start_UX[user]
    return found


def _parts(rows: np.ndarray, size: int = 1 << 15) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, max(len(rows), 1), size)]
