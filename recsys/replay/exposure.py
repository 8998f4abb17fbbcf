"""What a policy shows of the catalogue: coverage, Gini, novelty, popularity beside that of people's own histories.

E events, K places, I items; item codes > 0, 0 is none.
"""

import numpy as np


def exposures(shown_EK: np.ndarray, items: int) -> np.ndarray:
    """How often each item was shown; int64 [items], of codes 1 … items."""
    return np.bincount(shown_EK.ravel(), minlength=items + 1)[1:]


def coverage(count_I: np.ndarray) -> float:
    """Share of the catalogue that was shown at all."""
    return float((count_I > 0).mean()) if len(count_I) else 0.0


def gini(count_I: np.ndarray) -> float:
    """Inequality of exposure: 0 where all items are shown equally often, 1 − 1/I where only one is."""
    total = count_I.sum()
    if not total:
        return 0.0
    ordered = np.sort(count_I)
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * total))


def self_information(count_I: np.ndarray) -> np.ndarray:
    """−log₂ of each item's share of all interactions, in bits; one that nobody has met counts as met once."""
    met = np.maximum(count_I, 1)
    return -np.log2(met / met.sum())


def popularity_ranks(count_I: np.ndarray) -> np.ndarray:
    """Place of each item among all by popularity, 1 for the most popular; ties share their mean place."""
    values, inverse, times = np.unique(-count_I, return_inverse=True, return_counts=True)
    end = np.cumsum(times)
    return (end - (times - 1) / 2)[inverse] if len(values) else np.zeros(0)


def mean_of(value_I: np.ndarray, shown_EK: np.ndarray) -> np.ndarray:
    """Mean of a number over the items of each feed; NaN where it is empty; float64 [E]."""
    padded = np.concatenate([[0.0], value_I])
    shown = (shown_EK > 0).sum(1)
    return np.divide(padded[shown_EK].sum(1), shown, out=np.full(len(shown_EK), np.nan), where=shown > 0)
