"""Why an item is in a feed: which items of the person's past speak for it, and which experts of the ranker spoke.

Said with every feed that asks for it, so it is cheap: the retriever reads the history once more for each of its last
steps, without that step, and what the score of an item loses is what the step says for it. What features do to the
ranker's probability takes longer and is told by `recsys.explain`.

S steps looked at, K items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embeddings.histories import Histories
from features.online import Id
from recsys.scorer import LearnedScorer, Scorer

STEPS = 16
"""The last steps of a history that are looked at; what is before is not told as a reason."""

TOLD = 3
"""Items that are told of each, at most."""


@dataclass(frozen=True)
class Reason:
    """Why an item is in a feed."""

    because: tuple[tuple[Id, float], ...]
    """Items of the history, or liked ones, that speak most for it, and the share of each in all that speaks for it;
    best first."""
    experts: dict[str, dict[str, float]]
    """Task → expert → its share of what was heard; {} where the ranker has no experts."""
    liked_category: str | None
    """A category that the person likes and the item has."""
    source: Literal["history", "taste", "popular"]
    """Whether what speaks most for it was done, or said; `popular` where nothing speaks for it but its popularity."""


def speaking(scorer: Scorer, past: Histories, items_K: np.ndarray) -> list[list[tuple[int, float]]]:
    """For each item, what of the past speaks for it.

    Args:
        scorer: the retriever.
        past: one history, not empty.
        items_K: item indices, int64.

    Returns:
        For each item its (index of an item of the past, share), at most `TOLD`, best first.
    """
    steps = past.last(scorer.max_history) if isinstance(scorer, LearnedScorer) else past
    length = len(steps.items_N)
    looked_at = np.arange(max(0, length - STEPS), length)
    if length == 1:
        return [[(int(steps.items_N[0]), 1.0)]] * len(items_K)
    kept = np.arange(length)
    rows = [kept, *(np.delete(kept, step) for step in looked_at)]
    chosen = np.concatenate(rows)
    asked = Histories(
        items_N=steps.items_N[chosen],
        lengths_B=np.array([len(row) for row in rows]),
        timestamps_N=steps.timestamps_N[chosen],
        actions_N=steps.actions_N[chosen],
        asked_B=np.repeat(steps.asked_B, len(rows)),
    )
    score_BK = scorer.scores(asked)[:, items_K]
    lost_SK = np.maximum(score_BK[0] - score_BK[1:], 0)
    return [_largest(steps.items_N[looked_at], lost_S) for lost_S in lost_SK.T]


def _largest(items_S: np.ndarray, lost_S: np.ndarray) -> list[tuple[int, float]]:
    items, place_S = np.unique(items_S, return_inverse=True)
    lost = np.bincount(place_S, lost_S)
    whole = lost.sum()
    order = np.argsort(-lost, kind="stable")[:TOLD]
    return [(int(items[place]), float(lost[place] / whole)) for place in order if lost[place] > 0]


def reason(
    because: Sequence[tuple[Id, float]],
    liked: frozenset[Id],
    category: str | None,
    experts: dict[str, dict[str, float]],
) -> Reason:
    """From its parts; `liked` are items that the person has said to like."""
    source: Literal["history", "taste", "popular"] = "popular"
    if because:
        source = "taste" if because[0][0] in liked else "history"
    elif category is not None:
        source = "taste"
    return Reason(tuple(because), experts, category, source)
