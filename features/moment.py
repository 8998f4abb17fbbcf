"""The columns of request frames for requests: what `features.fold` computes from a log, computed from a store.

B requests, R items for each, K keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from features import manifest
from features._hash import hash64, hash_one, splitmix64
from features.counters import DECAY_UNIT, Counter
from features.entities import attribute_hashes
from features.fold import HISTORY_COLUMNS, Plan, recency
from features.online import Counts, Event, Id, Increment, StateStore
from features.schema import RETRIEVED
from features.slices import gather_slices


@dataclass(frozen=True)
class Asked:
    """A request, as far as features know it."""

    user_id: Id
    timestamp: int
    """Unix time, ms."""
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of the log's context columns."""


@dataclass(frozen=True)
class Described:
    """What counters count people or items by: of each id of the source's table the hashes of its attributes."""

    row: dict[Id, int]
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    """Column → (hashes end to end, where each row begins)."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `prepare` leaves in the snapshot."""
        table = pl.read_parquet(path)
        key, *columns = table.columns
        row = {name: number for number, name in enumerate(table[key].to_list())} if columns else {}
        return cls(row, {column: attribute_hashes(table[column]) for column in columns})

    def of(self, column: str, name: Id) -> np.ndarray:
        """Hashes of one id's values; uint64."""
        values, edge = self.columns[column]
        row = self.row.get(name)
        return values[:0] if row is None else values[edge[row] : edge[row + 1]]


@dataclass(frozen=True)
class Ragged:
    """Lists end to end, and where each begins."""

    values: np.ndarray
    edge: np.ndarray
    """int64 [B + 1]"""

    def repeated(self, times: int) -> "Ragged":
        """Each list so many times."""
        start, end = np.repeat(self.edge[:-1], times), np.repeat(self.edge[1:], times)
        return Ragged(*gather_slices(self.values, start, end))

    def last(self, count: int) -> "Ragged":
        """At most the last `count` of each list."""
        return Ragged(*gather_slices(self.values, np.maximum(self.edge[:-1], self.edge[1:] - count), self.edge[1:]))


Column = np.ndarray | Ragged | list[Any]


class Moment:
    """The request frame's columns that features read, from a store's histories and counters."""

    def __init__(
        self,
        plan: Plan,
        columns: tuple[str, ...],
        actions: list[str],
        item_ids: Sequence[Id],
        user_index: Mapping[Id, int],
        described: Mapping[str, Described],
    ) -> None:
        """What was fixed when the bundle was made.

        Args:
            plan: the counters and the length of histories.
            columns: those that features read.
            actions: the action of each code.
            item_ids: the id of each item index; that of index 0 is not looked at.
            user_index: the index of each known person.
            described: `user` and `item`: what counters count by.
        """
        self.plan, self.item_ids, self.user_index, self.described = plan, list(item_ids), user_index, described
        self.item_index = {item: index for index, item in enumerate(self.item_ids) if index > 0}
        self.actions = {action: code for code, action in enumerate(actions)}
        self.counters = [counter for counter in plan.counters if set(counter.columns) & set(columns)]
        own = {"timestamp", "user_last_timestamp", *HISTORY_COLUMNS}
        own |= {name for counter in plan.counters for name in counter.columns}
        self.context = tuple(name for name in columns if name not in own and not name.startswith(RETRIEVED))
        self.wanted = frozenset(columns)
        self._user_axes = {axis for counter in self.counters for axis in counter.by if axis.startswith("user")}
        self._keep = np.array([counter.keep for counter in self.counters], dtype=np.int64)
        self._weights = np.concatenate([np.zeros(0, np.int64), *(counter.weights for counter in self.counters)])
        self._first_weight = np.cumsum(self._keep) - self._keep
        self._item_hash = np.concatenate([[np.uint64(0)], hash64(pl.Series(self.item_ids[1:]))])
        self._item_rows: dict[str, tuple[np.ndarray, np.ndarray]] = {
            column: _reordered(*values, [described["item"].row.get(item, -1) for item in self.item_ids])
            for column, values in described["item"].columns.items()
        }
        self._of_items = [self._item_part(counter) for counter in self.counters]
        self._open = np.array(
            [not counter.personal and any(axis.startswith("user") for axis in counter.by) for counter in self.counters],
            dtype=bool,
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        plan: Plan,
        columns: tuple[str, ...],
        item_ids: Sequence[Id],
        user_index: Mapping[Id, int],
    ) -> Self:
        """From a directory with `actions.json` and `snapshot/`."""
        described = {
            name: Described.load(directory / "snapshot" / f"described_{name}s.parquet") for name in ("user", "item")
        }
        actions = manifest.read_json(directory / "actions.json")["actions"]
        return cls(plan, columns, actions, item_ids, user_index, described)

    def columns(
        self, asked: Sequence[Asked], histories: Sequence[Sequence[Event]], item_BR: np.ndarray, store: StateStore
    ) -> tuple[dict[str, Column], dict[str, Column]]:
        """The columns of a request frame that features read: of each request [B], and of each of its items [B · R].

        Numbers are float64, NaN where they are missing; history items and actions int32; context values as they came.

        Args:
            asked: the requests.
            histories: of each request's person, from the store.
            item_BR: item indices.
            store: where the counters are.
        """
        recent = [history[-self.plan.history :] for history in histories]
        edge = np.zeros(len(asked) + 1, dtype=np.int64)
        np.cumsum([len(history) for history in recent], out=edge[1:])
        events = [event for history in recent for event in history]
        time = np.array([one.timestamp for one in asked], dtype=np.int64)
        people: dict[str, Column] = {"timestamp": time.astype(np.float64)}
        if "user_last_timestamp" in self.wanted:
            last = [history[-1].timestamp if history else np.nan for history in histories]
            people["user_last_timestamp"] = np.array(last, dtype=np.float64)
        if "history" in self.wanted:
            items = [self.item_index.get(event.item_id, 0) for event in events]
            people["history"] = Ragged(np.array(items, dtype=np.int32), edge)
        if "history_actions" in self.wanted:
            actions = [self.actions.get(event.action, -1) for event in events]
            people["history_actions"] = Ragged(np.array(actions, dtype=np.int16), edge)
        if self.wanted & {"history_gaps", "history_recency"}:
            gaps = np.repeat(time, np.diff(edge)) - np.array([event.timestamp for event in events], dtype=np.int64)
            people["history_gaps"] = Ragged(gaps, edge)
            people["history_recency"] = Ragged(recency(gaps), edge)
        for name in self.context:
            people[name] = [one.context.get(name) for one in asked]
        pairs: dict[str, Column] = {}
        if self.counters:
            self._count(asked, item_BR, store, people, pairs)
        return people, pairs

    def increments(self, event: Event) -> list[Increment]:
        """What an event adds to the counters."""
        user, item = np.array([hash_one(event.user_id)], np.uint64), np.array([hash_one(event.item_id)], np.uint64)
        found: list[Increment] = []
        for counter in self.plan.counters:
            hashes: list[np.ndarray] = []
            for axis in counter.by:
                name, _, column = axis.partition(".")
                whose = event.user_id if name == "user" else event.item_id
                own = user if name == "user" else item
                hashes.append(self.described[name].of(column, whose) if column else own)
            bucket = event.timestamp // counter.step_ms if counter.step_ms else 0
            found += [Increment(key, bucket, counter.keep) for key in _chained(counter, hashes).tolist()]
        return found

    def keys_of(self, user_id: Id, history: Sequence[Event]) -> np.ndarray:
        """Keys of all counters that count by this very person; uint64 [K].

        With items, those of the catalogue and of the history; with an attribute of items, all of its values. What
        counts by attributes of people is of many.
        """
        others = [event.item_id for event in history if event.item_id not in self.item_index]
        items = np.concatenate([self._item_hash[1:], np.array([hash_one(item) for item in others], dtype=np.uint64)])
        found = [np.zeros(0, dtype=np.uint64)]
        for counter in self.plan.counters:
            if "user" in counter.by:
                hashes: list[np.ndarray] = []
                for axis in counter.by:
                    name, _, column = axis.partition(".")
                    if name == "user":
                        hashes.append(self._of_user(axis, user_id))
                    else:
                        hashes.append(np.unique(self.described["item"].columns[column][0]) if column else items)
                found.append(_chained(counter, hashes))
        return np.unique(np.concatenate(found))

    def _count(
        self,
        asked: Sequence[Asked],
        item_BR: np.ndarray,
        store: StateStore,
        people: dict[str, Column],
        pairs: dict[str, Column],
    ) -> None:
        """Add the columns of the counters: those of the person alone to `people`, the others to `pairs`."""
        requests, width = item_BR.shape
        keys: list[np.ndarray] = []
        places: list[np.ndarray] = []
        buckets: list[int] = []
        counters: list[int] = []
        sizes = [requests if counter.personal else requests * width for counter in self.counters]
        first = np.cumsum([0, *sizes])
        for request, one in enumerate(asked):
            own = {axis: self._of_user(axis, one.user_id) for axis in self._user_axes}
            for number, counter in enumerate(self.counters):
                key, place = self._keys(number, own, item_BR[request])
                keys.append(key)
                places.append(place + (first[number] + request * (1 if counter.personal else width)))
                buckets.append(one.timestamp // counter.step_ms if counter.step_ms else 0)
                counters.append(number)
        lengths = [len(key) for key in keys]
        key_K = np.concatenate(keys)
        open_K = np.repeat(self._open[counters], lengths)
        key_K[open_K] = splitmix64(key_K[open_K])
        found, which = _looked_up(store, key_K)
        counter_M = np.repeat(counters, lengths)[which]
        age_M = np.repeat(buckets, lengths)[which] - found.buckets
        seen = np.flatnonzero((age_M >= 0) & (age_M < self._keep[counter_M]))
        weight = self._weights[self._first_weight[counter_M[seen]] + age_M[seen]]
        place_M = np.concatenate(places)[which[seen]]
        for events, counts in ((True, found.events), (False, found.positives)):
            # A sum of integers below 2⁵³ is exact in float64.
            total = np.bincount(place_M, counts[seen] * weight, minlength=first[-1])
            for number, counter in enumerate(self.counters):
                name = counter.columns[0 if events else 1]
                if name in self.wanted:
                    mine = total[first[number] : first[number + 1]]
                    target = people if counter.personal else pairs
                    target[name] = mine if counter.half_life is None else mine / DECAY_UNIT

    def _of_user(self, axis: str, user: Id) -> np.ndarray:
        column = axis.partition(".")[2]
        return self.described["user"].of(column, user) if column else np.array([hash_one(user)], dtype=np.uint64)

    def _keys(self, number: int, own: dict[str, np.ndarray], item_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys of a person and items, and the item's place in `item_R` of each, 0 where items do not matter.

        Those of counters in `_open` lack their last `splitmix64`, which is done for all of them at once.
        """
        counter, of_items = self.counters[number], self._of_items[number]
        if of_items is None:
            key = np.array([counter.salt], dtype=np.uint64)
            for axis in counter.by:
                each = own[axis]
                key = splitmix64(np.repeat(key, len(each)) ^ np.tile(each, len(key)))
            return key, np.zeros(len(key), dtype=np.int64)
        values, edge = of_items
        if edge is None:
            key, place = values[item_R], np.arange(len(item_R))
        else:
            key, offsets = gather_slices(values, edge[item_R], edge[item_R + 1])
            place = np.repeat(np.arange(len(item_R)), np.diff(offsets))
        if not self._open[number]:
            return key, place
        axis = next(axis for axis in counter.by if axis.startswith("user"))
        hashes = own[axis]
        if counter.by[0] == axis:
            hashes = splitmix64(hashes ^ np.uint64(counter.salt))
        if len(hashes) == 1:
            return key ^ hashes[0], place
        return (key ^ hashes[:, None]).ravel(), np.tile(place, len(hashes))

    def _item_part(self, counter: Counter) -> tuple[np.ndarray, np.ndarray | None] | None:
        """What the catalogue contributes to a counter's keys: values, and where each item's begin if they are lists.

        The whole key for counters by items alone, the first half of it where items come first, else their hashes.
        """
        axes = [axis for axis in counter.by if axis.startswith("item")]
        if not axes:
            return None
        values, edge = self._hashes(axes[0])
        if counter.by[0] == axes[0]:
            values = splitmix64(values ^ np.uint64(counter.salt))
        for axis in axes[1:]:
            more, more_edge = self._hashes(axis)
            rows = np.arange(len(self.item_ids))
            edge = np.arange(len(rows) + 1) if edge is None else edge
            more_edge = np.arange(len(rows) + 1) if more_edge is None else more_edge
            row = np.repeat(rows, np.diff(edge))
            each, offsets = gather_slices(more, more_edge[row], more_edge[row + 1])
            values = splitmix64(np.repeat(values, np.diff(offsets)) ^ each)
            edge = offsets[edge]
        return values, edge

    def _hashes(self, axis: str) -> tuple[np.ndarray, np.ndarray | None]:
        column = axis.partition(".")[2]
        return self._item_rows[column] if column else (self._item_hash, None)


def _looked_up(store: StateStore, key_K: np.ndarray) -> tuple[Counts, np.ndarray]:
    """The entries of every key, and which of the keys each is of; what is asked for often is looked up once."""
    if len(key_K) <= _FEW:
        found = store.counts(key_K)
        return found, np.repeat(np.arange(len(key_K)), found.lengths)
    distinct, inverse = np.unique(key_K, return_inverse=True)
    once = store.counts(distinct)
    end = np.cumsum(once.lengths)[inverse]
    lengths = once.lengths[inverse]
    entry, _ = gather_slices(np.arange(len(once.buckets)), end - lengths, end)
    found = Counts(lengths, once.buckets[entry], once.events[entry], once.positives[entry])
    return found, np.repeat(np.arange(len(key_K)), lengths)


_FEW = 32
"""Keys that are not worth looking for repetitions among."""


def load_snapshot(
    directory: Path, users: Sequence[Id] | None = None
) -> tuple[dict[Id, tuple[Event, ...]], pl.DataFrame]:
    """What `StateStore.seed` takes, histories and counters, from a split's or bundle's `snapshot/`.

    Args:
        directory: of the split or bundle.
        users: whose histories; everybody's if not given.
    """
    table = pl.scan_parquet(directory / "snapshot" / "users.parquet")
    people = (table if users is None else table.filter(pl.col("user_id").is_in(users))).collect()
    if "action" in people.columns:
        people = people.with_columns(pl.col("action").list.eval(pl.element().fill_null("")))
    columns = {
        name: people[name] for name in ("item_id", "timestamp", "action", "value", "positive") if name in people.columns
    }
    histories: dict[Id, tuple[Event, ...]] = {}
    for place, user in enumerate(people["user_id"]):
        rows = zip(*(column[place] for column in columns.values()), strict=True)
        histories[user] = tuple(Event(user_id=user, **dict(zip(columns, row, strict=True))) for row in rows)
    return histories, pl.read_parquet(directory / "snapshot" / "counters.parquet")


def _reordered(values: np.ndarray, edge: np.ndarray, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of other rows of the same; −1 is an empty one."""
    row = np.array(rows)
    start = np.where(row < 0, 0, edge[row])
    return gather_slices(values, start, np.where(row < 0, 0, edge[row + 1]))


def _chained(counter: Counter, hashes: Sequence[np.ndarray]) -> np.ndarray:
    """Keys of all combinations of what a counter counts by."""
    key = np.array([counter.salt], dtype=np.uint64)
    for each in hashes:
        key = splitmix64(np.repeat(key, len(each)) ^ np.tile(each, len(key)))
    return key
