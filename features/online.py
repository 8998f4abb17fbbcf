"""What the online side keeps of people and counters, and the contract of the stores that keep it.

The batch side computes the same numbers over whole logs in `features.fold`; a test replays a log through a store and
compares every one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl

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


class Increment(NamedTuple):
    """One more event for a counter."""

    key: int
    """uint64: which counter of whom (`features.counters`)."""
    bucket: int
    """int64: number of the stretch of time that it falls in; 0 for a counter of all time."""
    keep: int
    """How far the counter looks back: after the increment it has the buckets above `newest - keep` only; at least 1."""


@dataclass(frozen=True)
class Counts:
    """Counters of K keys, jagged: key k has `lengths[k]` buckets, in ascending order, M in all."""

    lengths: np.ndarray
    """int64 [K]"""
    buckets: np.ndarray
    """int64 [M]"""
    events: np.ndarray
    """int64 [M]"""
    positives: np.ndarray
    """int64 [M]"""


COUNTER_SCHEMA = pl.Schema({"key": pl.UInt64, "bucket": pl.Int64, "events": pl.Int64, "positives": pl.Int64})
"""A snapshot's counters: one row a key and bucket."""


class StateStore(Protocol):
    """Histories and counters. Every implementation passes `tests/contract/test_stores.py`."""

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> None:
        """Apply events in the given order, each with the counters it increments; each is applied whole or not at all.

        A counter's `events` grows by 1, and its `positives` by 1 if the event is positive.
        """
        ...

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The last events of one person, oldest first, as many as the store retains; () for an unknown one."""
        ...

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`, uint64 [K]; an unknown key has no buckets."""
        ...

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame) -> bool:
        """Fill an empty store with a snapshot; a store that was filled before is left as it is.

        Args:
            histories: the events of each person, oldest first.
            counters: a frame of `COUNTER_SCHEMA`, in any order.

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
    _histories: dict[Id, tuple[Event, ...]] = field(default_factory=dict)
    _counters: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])
    """Of each key its (bucket, events, positives), int64 [buckets, 3], by bucket."""
    _seeded: bool = False

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> None:
        """Apply events in the given order."""
        for event, counted in zip(events, increments, strict=True):
            self._histories[event.user_id] = (*self.history(event.user_id), event)[-self.retain :]
            for key, bucket, keep in counted:
                held = self._counters.get(key, _NOTHING)
                place = int(np.searchsorted(held[:, 0], bucket))
                if place < len(held) and held[place, 0] == bucket:
                    held[place, 1:] += (1, event.positive)
                else:
                    held = np.insert(held, place, (bucket, 1, event.positive), axis=0)
                self._counters[key] = held[np.searchsorted(held[:, 0], held[-1, 0] - keep, "right") :]

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The last events of one person."""
        return self._histories.get(user_id, ())

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        found = [self._counters.get(key, _NOTHING) for key in keys.tolist()]
        table = np.concatenate([_NOTHING, *found])
        lengths = np.array([len(held) for held in found], dtype=np.int64)
        return Counts(lengths, table[:, 0], table[:, 1], table[:, 2])

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame) -> bool:
        """Fill an empty store; whether it was empty."""
        if self._seeded or self._histories:
            return False
        self._histories = {user: tuple(events[-self.retain :]) for user, events in histories.items()}
        ordered = counters.sort("key", "bucket")
        keys, first = np.unique(ordered["key"].to_numpy(), return_index=True)
        table = ordered.select("bucket", "events", "positives").to_numpy().astype(np.int64)
        edges = np.append(first, len(table))
        self._counters = {
            key: table[low:high].copy() for key, low, high in zip(keys.tolist(), edges, edges[1:], strict=False)
        }
        self._seeded = True
        return True

    def close(self) -> None:
        """Nothing to release."""


_NOTHING = np.empty((0, 3), dtype=np.int64)
