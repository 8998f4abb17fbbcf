"""What the online side keeps of people and items, and the contract of the stores that keep it.

The batch side computes the same numbers over a whole log in `features.temporal`; a test replays a log through a
store and compares every one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

Id = int | str


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, in the terms of the log."""

    user_id: Id
    item_id: Id
    timestamp: int
    """Unix time, milliseconds."""
    action: str = ""
    value: float | None = None
    positive: bool = False
    """Whether it counts as a positive under the run's label rule."""


@dataclass(frozen=True, slots=True)
class UserState:
    """What is known of one person before now."""

    history: tuple[Event, ...] = ()
    """The last events, oldest first; as many as the store retains."""
    events: int = 0
    """All events ever applied, also those no longer in `history`."""
    positives: int = 0
    last_timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Counters of N items, in the order they were asked for."""

    events: np.ndarray
    """int64 [N]"""
    positives: np.ndarray
    """int64 [N]"""


class StateStore(Protocol):
    """Histories and counters. Every implementation passes `tests/contract/test_stores.py`."""

    def append(self, events: Sequence[Event]) -> None:
        """Apply events in the given order; each is applied whole or not at all."""
        ...

    def user(self, user_id: Id) -> UserState:
        """The state of one person; an unknown one has the empty state."""
        ...

    def items(self, item_ids: Sequence[Id]) -> ItemCounts:
        """Counters of `item_ids`; an unknown item has zeros."""
        ...

    def seed(self, users: dict[Id, UserState], items: dict[Id, tuple[int, int]]) -> bool:
        """Fill an empty store with a snapshot; a store that was filled before is left as it is.

        Args:
            users: the state of each person.
            items: (events, positives) of each item.

        Returns:
            Whether the snapshot was taken.
        """
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


@dataclass
class MemoryStore:
    """A `StateStore` in this process's memory: replay, evaluation and tests."""

    retain: int = 1000
    """Events kept in a history; the oldest go first."""
    _users: dict[Id, UserState] = field(default_factory=dict)
    _items: dict[Id, tuple[int, int]] = field(default_factory=dict)
    _seeded: bool = False

    def append(self, events: Sequence[Event]) -> None:
        """Apply events in the given order."""
        for event in events:
            self._users[event.user_id] = advance(self.user(event.user_id), event, self.retain)
            count, positives = self._items.get(event.item_id, (0, 0))
            self._items[event.item_id] = (count + 1, positives + event.positive)

    def user(self, user_id: Id) -> UserState:
        """The state of one person."""
        return self._users.get(user_id, UserState())

    def items(self, item_ids: Sequence[Id]) -> ItemCounts:
        """Counters of `item_ids`."""
        none = (0, 0)
        counts = np.array([self._items.get(item_id, none) for item_id in item_ids], dtype=np.int64).reshape(-1, 2)
        return ItemCounts(events=counts[:, 0], positives=counts[:, 1])

    def seed(self, users: dict[Id, UserState], items: dict[Id, tuple[int, int]]) -> bool:
        """Fill an empty store; whether it was empty."""
        if self._seeded or self._users:
            return False
        self._users = {user: replace(state, history=state.history[-self.retain :]) for user, state in users.items()}
        self._items, self._seeded = dict(items), True
        return True

    def close(self) -> None:
        """Nothing to release."""


def advance(state: UserState, event: Event, retain: int) -> UserState:
    """The state after `event`, its history cut to the last `retain` events."""
    return UserState(
        history=(*state.history, event)[-retain:],
        events=state.events + 1,
        positives=state.positives + event.positive,
        last_timestamp=event.timestamp,
    )
