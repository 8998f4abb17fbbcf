"""What the online side keeps of people and counters, and the contract of the stores that keep it.

The batch side computes the same numbers over whole logs in `features.fold`; a test replays a log through a store and
compares every one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl

from features.taste import NOTHING, Taste

Id = int | str

DAY_MS = 86_400_000


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
    event_id: str = ""
    """What its sender calls it, "" for nothing: an event of the same person with an id that was seen is not applied
    again. A history does not tell it."""


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


def now_ms() -> int:
    """Unix time, ms."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much a store keeps of a person."""

    events: int = 1000
    """Events in a history; those that came first go first."""
    age_ms: int | None = None
    """How old, by its own time, an event of a history may be; None: any age."""
    ids: int = 2000
    """Ids of events that are remembered of a person, the last ones. At least as many as one batch may have, so that it
    may be sent again."""
    ids_ms: int = DAY_MS
    """How long they are remembered."""
    clock: Callable[[], int] = now_ms
    """What ages are counted from: Unix time, ms."""

    def oldest_ms(self) -> int:
        """The time from which on events are kept."""
        return -(2**63) if self.age_ms is None else self.clock() - self.age_ms

    def told(self, arrived: Sequence[Event]) -> tuple[Event, ...]:
        """The history that events make, the last `events` of which are kept, in the order they arrived.

        What is too old is left out. The others are told in the order of time, and of arrival where that is equal, as
        a log is sorted. What goes for lack of room goes in the order of arrival, so that one event from a clock that
        was ahead does not stay for ever.
        """
        kept = arrived[-self.events :]
        if self.age_ms is not None:
            oldest = self.oldest_ms()
            kept = [event for event in kept if event.timestamp >= oldest]
        return tuple(sorted(kept, key=_time))


def _time(event: Event) -> int:
    return event.timestamp


class StateStore(Protocol):
    """Histories, tastes and counters. Every implementation passes `tests/contract/stores`.

    Any call may raise `StoreError`: the store is gone, or full.
    """

    place: str
    """Where it is, for messages."""

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> np.ndarray:
        """Apply events in the given order, each with the counters it increments; each is applied whole or not at all.

        A counter's `events` grows by 1, and its `positives` by 1 if the event is positive. An event whose `event_id` is
        among those remembered of its person is left out: see `Retention`.

        Returns:
            Whether each was applied; bool [events].
        """
        ...

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """What is retained of one person's events, by time; () for an unknown one. See `Retention.told`."""
        ...

    def taste(self, user_id: Id) -> Taste:
        """What one person has said; empty for an unknown one."""
        ...

    def set_taste(self, user_id: Id, taste: Taste) -> None:
        """Keep this in place of what one person has said before."""
        ...

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`, uint64 [K]; an unknown key has no buckets."""
        ...

    def erase(self, user_id: Id, keys: np.ndarray) -> bool:
        """Forget a person: history, taste, ids of events, and the counters of `keys`, uint64 [K], all at once.

        Returns:
            Whether anything was there.
        """
        ...

    def expire(self) -> int:
        """Delete what `Retention` calls too old, of everybody; of how many people something went."""
        ...

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame, meaning: str = "") -> bool:
        """Fill an empty store with a snapshot; a store that was filled before is left as it is.

        Args:
            histories: the events of each person, oldest first.
            counters: a frame of `COUNTER_SCHEMA`, in any order.
            meaning: what the counters count, to be told by `meaning`.

        Returns:
            Whether the snapshot was taken.
        """
        ...

    def meaning(self) -> str | None:
        """What the snapshot said that its counters count; None where there was no snapshot."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


class MemoryStore:
    """A `StateStore` in this process's memory: replay, evaluation and tests."""

    place = "this process's memory"

    def __init__(self, retain: int | None = None, keeps: Retention | None = None) -> None:
        """`retain`: events kept in a history, whatever `keeps` says of that."""
        keeps = keeps or Retention()
        self._keeps = keeps if retain is None else replace(keeps, events=retain)
        self._arrived: dict[Id, tuple[Event, ...]] = {}
        self._tastes: dict[Id, Taste] = {}
        self._ids: dict[Id, dict[str, int]] = {}
        """Of each person id → when it was applied, the last ones."""
        self._counters: dict[int, np.ndarray] = {}
        """Of each key its (bucket, events, positives), int64 [buckets, 3], by bucket."""
        self._meaning: str | None = None

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> np.ndarray:
        """Apply events in the given order."""
        now, applied = self._keeps.clock(), np.ones(len(events), dtype=bool)
        for place, (event, counted) in enumerate(zip(events, increments, strict=True)):
            if event.event_id and not self._is_new(event.user_id, event.event_id, now):
                applied[place] = False
                continue
            arrived = (*self._arrived.get(event.user_id, ()), replace(event, event_id=""))
            self._arrived[event.user_id] = arrived[-self._keeps.events :]
            for key, bucket, keep in counted:
                held = self._counters.get(key, _NOTHING)
                row = int(np.searchsorted(held[:, 0], bucket))
                if row < len(held) and held[row, 0] == bucket:
                    held[row, 1:] += (1, event.positive)
                else:
                    held = np.insert(held, row, (bucket, 1, event.positive), axis=0)
                self._counters[key] = held[np.searchsorted(held[:, 0], held[-1, 0] - keep, "right") :]
        return applied

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The history of one person."""
        return self._keeps.told(self._arrived.get(user_id, ()))

    def taste(self, user_id: Id) -> Taste:
        """What one person has said."""
        return self._tastes.get(user_id, NOTHING)

    def set_taste(self, user_id: Id, taste: Taste) -> None:
        """Keep this in place of it."""
        self._tastes[user_id] = taste
        if not taste:
            del self._tastes[user_id]

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        found = [self._counters.get(key, _NOTHING) for key in keys.tolist()]
        table = np.concatenate([_NOTHING, *found])
        lengths = np.array([len(held) for held in found], dtype=np.int64)
        return Counts(lengths, table[:, 0], table[:, 1], table[:, 2])

    def erase(self, user_id: Id, keys: np.ndarray) -> bool:
        """Forget a person and the counters of `keys`."""
        gone = [table.pop(user_id, None) for table in (self._arrived, self._tastes, self._ids)]
        gone += [self._counters.pop(key, None) for key in keys.tolist()]
        return any(one is not None for one in gone)

    def expire(self) -> int:
        """Delete what is too old; of how many people."""
        oldest, least, touched = self._keeps.oldest_ms(), self._keeps.clock() - self._keeps.ids_ms, set[Id]()
        for user, arrived in list(self._arrived.items()):
            kept = tuple(event for event in arrived if event.timestamp >= oldest)
            if len(kept) < len(arrived):
                touched.add(user)
                self._arrived[user] = kept
                if not kept:
                    del self._arrived[user]
        for user, ids in list(self._ids.items()):
            kept_ids = {name: at for name, at in ids.items() if at > least}
            if len(kept_ids) < len(ids):
                touched.add(user)
                self._ids[user] = kept_ids
                if not kept_ids:
                    del self._ids[user]
        return len(touched)

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame, meaning: str = "") -> bool:
        """Fill an empty store; whether it was empty."""
        if self._meaning is not None or self._arrived:
            return False
        self._arrived = {user: tuple(events[-self._keeps.events :]) for user, events in histories.items() if events}
        ordered = counters.sort("key", "bucket")
        keys, first = np.unique(ordered["key"].to_numpy(), return_index=True)
        table = ordered.select("bucket", "events", "positives").to_numpy().astype(np.int64)
        edges = np.append(first, len(table))
        self._counters = {
            key: table[low:high].copy() for key, low, high in zip(keys.tolist(), edges, edges[1:], strict=False)
        }
        self._meaning = meaning
        return True

    def meaning(self) -> str | None:
        """What the snapshot said that its counters count."""
        return self._meaning

    def close(self) -> None:
        """Nothing to release."""

    def _is_new(self, user_id: Id, event_id: str, now: int) -> bool:
        """Whether an id is not remembered of a person; it is from now on."""
        ids = self._ids.setdefault(user_id, {})
        if ids.get(event_id, now - self._keeps.ids_ms) > now - self._keeps.ids_ms:
            return False
        ids.pop(event_id, None)  # A forgotten one comes last again.
        ids[event_id] = now
        while len(ids) > self._keeps.ids:
            del ids[next(iter(ids))]
        return True


_NOTHING = np.empty((0, 3), dtype=np.int64)
