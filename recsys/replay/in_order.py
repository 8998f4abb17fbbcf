"""Feeds for events that follow each other, scored together, each from the state just before its event.

One feed at a time leaves most of a core idle between kernels; a batch that was asked before its first event would not
know what its own earlier events did to histories and counters. So events are applied one by one while what each request
has to know is read in its turn; only the models see them together.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl

from embeddings.batch import Columns
from features.online import Counts, Event, Id, Increment, MemoryStore
from recsys.inference import Recommender, Request, Response


class TurnStore(MemoryStore):
    """A store that tells a batch of requests, each in its turn, what was so before the event that it is about.

    Histories are applied at once, and remembered as each request has to see them; counters follow behind.
    """

    def __init__(self, retain: int) -> None:
        """`retain`: events kept in a history."""
        super().__init__(retain)
        self._behind = MemoryStore(retain)
        """Whose counters are those of the turn."""
        self._before: dict[Id, deque[tuple[Event, ...]]] = {}
        """Of each person of the batch the histories that its requests see, in their order."""
        self._waiting: deque[list[tuple[Event, Sequence[Increment]]]] = deque()
        """What each event of the batch does to the counters, as far as their turn has not come."""

    def hold(self, user_id: Id) -> None:
        """An event of this person is next: the request about it sees what is now."""
        self._before.setdefault(user_id, deque()).append(super().history(user_id))
        self._waiting.append([])

    def turn(self) -> None:
        """The counters go past one more event of the batch, if there is one."""
        if not self._waiting:
            return
        for event, increments in self._waiting.popleft():
            self._behind.append([event], [increments])

    def end(self) -> None:
        """The batch is done: the counters catch up."""
        assert not any(self._before.values()), "a request has not asked for its history"
        self._before.clear()
        while self._waiting:
            self.turn()

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> np.ndarray:
        """Apply events; inside a batch, counters later."""
        if self._waiting:
            self._waiting[-1].extend(zip(events, increments, strict=True))
        else:
            self._behind.append(events, increments)
        return super().append(events, [()] * len(events))

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """What the next request of this person sees."""
        held = self._before.get(user_id)
        return held.popleft() if held else super().history(user_id)

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters at the turn."""
        return self._behind.counts(keys)

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame, meaning: str = "") -> bool:
        """Fill an empty store."""
        self._behind.seed({}, counters)
        return super().seed(histories, counters.clear(), meaning)


class InOrder(Recommender):
    """A recommender that answers for stretches of a log; its store is a `TurnStore`."""

    store: TurnStore
    _said: dict[str, np.ndarray]

    def feeds(self, events: Sequence[Event], requests: Sequence[Request]) -> list[Response]:
        """What each request is shown just before its event; then the events have happened.

        Args:
            events: in the order of time.
            requests: one for each.
        """
        for event in events:
            self.store.hold(event.user_id)
            self.observe([event])
        responses = self.recommend_many(requests)
        self.store.end()
        return responses

    def encode(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        items_BR: np.ndarray,
        score_BR: np.ndarray,
    ) -> Columns:
        """The features of each request's candidates at its turn."""
        # What the retriever says depends on no counter.
        said = super().retrieved(requests, histories, items_BR, score_BR, self._of_retriever)
        width, found = items_BR.shape[1], list[Columns]()
        for b in range(len(requests)):
            one = slice(b, b + 1)
            self._said = {
                name: column[one] if column.ndim > 1 else column[b * width : (b + 1) * width]
                for name, column in said.items()
            }
            found.append(super().encode(requests[one], histories[one], items_BR[one], score_BR[one]))
            self.store.turn()
        return Columns.join(found)

    def retrieved(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        items_BR: np.ndarray,
        score_BR: np.ndarray,
        columns: Collection[str],
    ) -> dict[str, np.ndarray]:
        """What was found for all of the batch, of the request whose turn it is."""
        return self._said

    def close(self) -> None:
        """Release the store."""
        self.store.close()
