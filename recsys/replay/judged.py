"""How good a feed was, by what happened next: recall, ndcg, mrr and map at k, event by event.

E events, K places of a feed, H right items. Items are codes > 0; 0 is none.
"""

from collections.abc import Sequence

import numpy as np

ACCURACY = ("recall", "ndcg", "mrr", "map")


def accuracy(shown_EK: np.ndarray, right_EH: np.ndarray, cuts: Sequence[int]) -> dict[str, np.ndarray]:
    """`recall@k`, `ndcg@k`, `mrr@k`, `map@k` of each event; float64 [E] each.

    With R different right items: recall is the share of them in the first k places; the ideal DCG has min(k, R) of them
    in the first places; mrr is 1 / place of the first one that is found; map is the mean, over min(k, R), of the
    precision at each place where one is found. With one right item they are those of `recsys.metrics`, and map is mrr.

    Args:
        shown_EK: feeds, best first, no item twice.
        right_EH: what is to be found; an item that is there twice counts once.
        cuts: each k.
    """
    right_EH = _distinct(right_EH)
    right_E = (right_EH > 0).sum(1)
    hit_EK = ((shown_EK[:, :, None] == right_EH[:, None, :]) & (shown_EK[:, :, None] > 0)).any(2)
    places = np.arange(1, shown_EK.shape[1] + 1)
    gain_K = 1.0 / np.log2(places + 1.0)
    precision_EK = np.cumsum(hit_EK, axis=1) / places
    found: dict[str, np.ndarray] = {}
    for k in cuts:
        hit = hit_EK[:, :k]
        most_E = np.minimum(right_E, k)
        ideal_E = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])[most_E]
        found[f"recall@{k}"] = _over(hit.sum(1), right_E)
        found[f"ndcg@{k}"] = _over(hit @ gain_K[:k], ideal_E)
        found[f"mrr@{k}"] = np.where(hit.any(1), 1.0 / (1 + hit.argmax(1)), 0.0)
        found[f"map@{k}"] = _over((precision_EK[:, :k] * hit).sum(1), most_E)
    return found


def right_items(item_E: np.ndarray, user_E: np.ndarray, ahead: int) -> np.ndarray:
    """What each feed is judged by: the event's own item and those of the person's next ones; int64 [E, ahead].

    Args:
        item_E: codes in the order of time.
        user_E: who it was, as integers.
        ahead: how many; near the end of somebody's log there are fewer.
    """
    order = np.argsort(user_E, kind="stable")
    item, user = item_E[order], user_E[order]
    right = np.zeros((len(item), ahead), dtype=np.int64)
    for step in range(min(ahead, len(item))):
        same = user[: len(user) - step] == user[step:]
        right[: len(user) - step, step] = np.where(same, item[step:], 0)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return right[back]


def _distinct(right_EH: np.ndarray) -> np.ndarray:
    ordered = np.sort(right_EH, axis=1)
    again = np.zeros(ordered.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(again, 0, ordered)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
