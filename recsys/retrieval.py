"""What is retrieved for requests: the best of the catalogue by the retriever, or by popularity, and by taste.

B requests, I items of the catalogue, R retrieved for each, N steps of all histories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embeddings.histories import Histories
from features.online import Event, Id
from recsys.baselines.popularity import Popularity
from recsys.feeds import Request, times_of
from recsys.index.protocol import Lists
from recsys.scorer import Scorer, TreeSearcher
from recsys.taste import Effect


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A retriever with a catalogue."""

    scorer: Scorer
    searcher: TreeSearcher | None
    """None: every item is scored."""
    fallback: Popularity
    """Of those of whom nothing is known."""
    item_index: Mapping[Id, int]
    actions: Mapping[str, int]
    """The code of each action."""
    count: int
    """Items retrieved, or as many as the longest feed has."""
    seen_ms: int | None
    """How long what is in a history is left out; None: for ever."""

    def retrieve(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        effects: Sequence[Effect | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each request, best first, and their scores, −inf where there are no more; [B, R] each.

        Where a taste has an effect, items are the best by what it makes of their scores; the scores are the retriever's
        own. A tree is searched without it, but for what is hidden: what it has not found is not raised.
        """
        count = max(self.count, *(request.k for request in requests))
        effects = [None] * len(requests) if effects is None else effects
        if self.searcher is None:
            return _top(self.scores(requests, histories), count, effects)
        past = self.past(requests, histories)
        known_B = past.lengths_B > 0
        items_BR = np.zeros((len(requests), min(count, len(self.item_index))), dtype=np.int64)
        score_BR = np.full(items_BR.shape, -np.inf, dtype=np.float32)
        if known_B.any():
            # Those who are not known have no steps, so that the steps of the others are all there are.
            hidden_N = self._hidden(requests, past)
            counts_B = np.bincount(past.rows_N[hidden_N], minlength=len(requests))[known_B]
            hidden = Lists(past.items_N[hidden_N], np.concatenate([[0], np.cumsum(counts_B)]))
            hidden = _joined(hidden, [effects[b] for b in np.flatnonzero(known_B).tolist()])
            found = self.searcher.search(past.users(known_B), items_BR.shape[1], hidden)
            items_BR[known_B], score_BR[known_B] = found.items_Bk, found.scores_Bk
        if not known_B.all():
            strangers = [place for place in range(len(requests)) if not known_B[place]]
            popular = self.scores([requests[b] for b in strangers], [histories[b] for b in strangers])
            said = [effects[b] for b in strangers]
            items_BR[~known_B], score_BR[~known_B] = _top(popular, items_BR.shape[1], said)
        return items_BR, score_BR

    def scores(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> np.ndarray:
        """float32 [B, I + 1]; −inf for what must not be shown: column 0, and what was seen where that is hidden."""
        past = self.past(requests, histories)
        score_BI = np.array(self.scorer.scores(past))
        stranger_B = past.lengths_B == 0
        score_BI[stranger_B] = self.fallback.log_count_I
        score_BI[:, 0] = -np.inf
        hidden_N = self._hidden(requests, past)
        score_BI[past.rows_N[hidden_N], past.items_N[hidden_N]] = -np.inf
        return score_BI

    def _hidden(self, requests: Sequence[Request], past: Histories) -> np.ndarray:
        """Whether the item of each step must not be shown; bool [N]."""
        hidden_N = np.repeat([request.exclude_seen for request in requests], past.lengths_B)
        if self.seen_ms is None:
            return hidden_N
        return hidden_N & (past.timestamps_N > np.repeat(past.asked_B, past.lengths_B) - self.seen_ms)

    def past(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> Histories:
        """What of the histories the retriever knows."""
        known = [[event for event in history if event.item_id in self.item_index] for history in histories]
        events = [event for history in known for event in history]
        actions = self.actions
        return Histories(
            items_N=np.array([self.item_index[event.item_id] for event in events], dtype=np.int64),
            lengths_B=np.array([len(history) for history in known], dtype=np.int64),
            timestamps_N=np.array([event.timestamp for event in events], dtype=np.int64),
            actions_N=np.array([actions.get(event.action, -1) for event in events], dtype=np.int16),
            asked_B=times_of(requests),
        )


def _top(score_BI: np.ndarray, count: int, effects: Sequence[Effect | None]) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` columns of each row by scores and tastes, best first, and their scores; [B, R] each."""
    count, shifted_BI = min(count, score_BI.shape[1] - 1), score_BI
    said = [(b, effect) for b, effect in enumerate(effects) if effect is not None]
    if said:
        every_I = np.arange(score_BI.shape[1])
        for b, effect in said:
            score_BI[b, effect.hidden] = -np.inf
        shifted_BI = score_BI.copy()
        for b, effect in said:
            shifted_BI[b] += effect.shift(every_I)
    best, index = torch.topk(torch.from_numpy(shifted_BI), count, dim=1)
    index_BR = index.numpy()
    return index_BR, np.take_along_axis(score_BI, index_BR, axis=1) if said else best.numpy()


def _joined(hidden: Lists, effects: Sequence[Effect | None]) -> Lists:
    """What must not be shown of each history, and what its person wants not to see."""
    if not any(effects):
        return hidden
    own = np.split(hidden.items_N, hidden.offsets_B1[1:-1])
    lists = [
        items if effect is None else np.union1d(items, effect.hidden)
        for items, effect in zip(own, effects, strict=True)
    ]
    return Lists(np.concatenate(lists), np.cumsum([0, *(len(items) for items in lists)]))
