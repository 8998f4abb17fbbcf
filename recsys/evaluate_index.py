"""What a tree of items finds, and how fast, beside a look at all of them: same model, same questions."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from embeddings.histories import Histories
from recsys.index.protocol import Lists
from recsys.scorer import TreeSearcher

LIST = 100
"""Length of the lists that are compared."""

TIMED = 300
"""Questions that are asked one at a time, to be timed, at most."""

_BATCH = 256


def evaluate_index(searcher: TreeSearcher, questions: pl.DataFrame) -> dict[str, float]:
    """Compare the tree with exhaustive scoring.

    Args:
        searcher: the tree and the model.
        questions: a row a question: `items`, `timestamps`, `actions`, `timestamp`, `item_index`; items of the history
            are no answers.

    Returns:
        `recall@100`: share of questions whose right item is among the tree's first hundred; `exhaustive.recall@100`:
        among the best hundred of all; `agreement@100`: share of the best hundred of all that the tree finds;
        `scored`: items that it compares with a query, on average; `p50_ms`, `p99_ms` and `exhaustive.p50_ms`,
        `exhaustive.p99_ms` for one question, from history to list.
    """
    scorer = searcher.scorer
    right = np.zeros(2)
    agreed = scored = 0.0
    # Of like length together, so that little is padded.
    for part in questions.sort(pl.col("items").list.len()).iter_slices(_BATCH):
        histories = Histories.of(part)
        target_B1 = part["item_index"].to_numpy()[:, None]
        exact_BK = best(scorer.scores(histories), histories)
        found = searcher.search(histories, LIST, seen(histories))
        right += (found.items_Bk == target_B1).any(1).sum(), (exact_BK == target_B1).any(1).sum()
        agreed += sum(np.isin(a, b).mean() for a, b in zip(exact_BK, found.items_Bk, strict=True))
        scored += float(found.scored_B.sum())
    count = questions.height
    some = questions[np.linspace(0, count - 1, min(TIMED, count)).astype(np.int64)]
    tree = timed(some, lambda histories: searcher.search(histories, LIST, seen(histories)))
    exhaustive = timed(some, lambda histories: best(scorer.scores(histories), histories))
    return {
        f"recall@{LIST}": float(right[0]) / count,
        f"exhaustive.recall@{LIST}": float(right[1]) / count,
        f"agreement@{LIST}": agreed / count,
        "scored": scored / count,
        **tree,
        **{f"exhaustive.{name}": value for name, value in exhaustive.items()},
    }


def best(score_BI: np.ndarray, histories: Histories) -> np.ndarray:
    """The best hundred of the catalogue that a history does not hold, in no order; int64 [B, 100].

    Args:
        score_BI: float32; is changed.
        histories: B of them.
    """
    score_BI[:, 0] = -np.inf
    score_BI[histories.rows_N, histories.items_N] = -np.inf
    count = min(LIST, score_BI.shape[1] - 1)
    return np.argpartition(-score_BI, count, axis=1)[:, :count]


def seen(histories: Histories) -> Lists:
    """What the histories hold."""
    return Lists(histories.items_N, np.concatenate([[0], np.cumsum(histories.lengths_B)]))


def timed(questions: pl.DataFrame, answer: Callable[[Histories], Any]) -> dict[str, float]:
    """`p50_ms`, `p99_ms`: milliseconds of an answer, each question asked alone."""
    each = [Histories.of(question) for question in questions.iter_slices(1)]
    answer(each[0])
    taken: list[float] = []
    for histories in each:
        started = time.perf_counter()
        answer(histories)
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}
