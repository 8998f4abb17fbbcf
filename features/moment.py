"""Request frames for requests: what `features.fold` computes from a log, computed from a store.

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
from features.counters import Counter
from features.entities import attribute_hashes
from features.fold import HISTORY_COLUMNS, Plan, recency
from features.online import Counts, Event, Id, Increment, StateStore
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
        self.context = tuple(name for name in columns if name not in own)
        self.wanted = frozenset(columns)
        self._item_hash = np.concatenate([[np.uint64(0)], hash64(pl.Series(self.item_ids[1:]))])
        self._item_rows = {
            column: _reordered(*values, [described["item"].row.get(item, -1) for item in self.item_ids])
            for column, values in described["item"].columns.items()
        }

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

    def frame(
        self, asked: Sequence[Asked], histories: Sequence[Sequence[Event]], item_BR: np.ndarray, store: StateStore
    ) -> pl.DataFrame:
        """The request frame that `features.encoder` describes, a row for each request and item, request by request.

        Args:
            asked: the requests.
            histories: of each request's person, from the store.
            item_BR: item indices.
            store: where the counters are.
        """
        width = item_BR.shape[1]
        recent = [history[-self.plan.history :] for history in histories]
        people: dict[str, pl.Series] = {
            "user_index": pl.Series([self.user_index.get(one.user_id, 0) for one in asked], dtype=pl.Int32),
            "timestamp": pl.Series([one.timestamp for one in asked], dtype=pl.Int64),
        }
        if "user_last_timestamp" in self.wanted:
            last = [history[-1].timestamp if history else None for history in histories]
            people["user_last_timestamp"] = pl.Series(last, dtype=pl.Int64)
        if "history" in self.wanted:
            items = [[self.item_index.get(event.item_id, 0) for event in history] for history in recent]
            people["history"] = pl.Series(items, dtype=pl.List(pl.Int32))
        if "history_actions" in self.wanted:
            actions = [[self.actions.get(event.action, -1) for event in history] for history in recent]
            people["history_actions"] = pl.Series(actions, dtype=pl.List(pl.Int16))
        if self.wanted & {"history_gaps", "history_recency"}:
            gaps = [
                np.array([one.timestamp - event.timestamp for event in history], dtype=np.int64)
                for one, history in zip(asked, recent, strict=True)
            ]
            if "history_gaps" in self.wanted:
                people["history_gaps"] = pl.Series([each.tolist() for each in gaps], dtype=pl.List(pl.Int64))
            if "history_recency" in self.wanted:
                people["history_recency"] = pl.Series(
                    [recency(each).tolist() for each in gaps], dtype=pl.List(pl.Float32)
                )
        for name in self.context:
            people[name] = pl.Series([one.context.get(name) for one in asked], strict=False)
        frame = pl.DataFrame([series.alias(name) for name, series in people.items()])
        if len(asked) * width != 1:
            frame = frame[np.repeat(np.arange(len(asked)), width)]
        columns = [pl.Series("item_index", item_BR.ravel(), dtype=pl.Int32)]
        if self.counters:
            columns += self._counted(asked, item_BR, store)
        return frame.with_columns(columns)

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

    def _counted(self, asked: Sequence[Asked], item_BR: np.ndarray, store: StateStore) -> list[pl.Series]:
        """The columns of the counters."""
        keys: list[np.ndarray] = []
        places: list[tuple[Counter, int, np.ndarray, np.ndarray | None]] = []
        for request, one in enumerate(asked):
            own = {axis: self._of_user(axis, one.user_id) for axis in self._user_axes}
            for counter in self.counters:
                key, owner = self._keys(counter, own, item_BR[request])
                if owner is not None:
                    key, inverse = np.unique(key, return_inverse=True)
                else:
                    inverse = np.arange(len(key))
                keys.append(key)
                places.append((counter, request, inverse, owner))
        counts = store.counts(np.concatenate(keys))
        width = item_BR.shape[1]
        totals = {counter.name: np.zeros((2, len(asked), width), dtype=np.int64) for counter in self.counters}
        first, edge = 0, np.concatenate([[0], np.cumsum(counts.lengths)])
        for key, (counter, request, inverse, owner) in zip(keys, places, strict=True):
            low, high = edge[first], edge[first + len(key)]
            mine = Counts(
                counts.lengths[first : first + len(key)],
                counts.buckets[low:high],
                counts.events[low:high],
                counts.positives[low:high],
            )
            first += len(key)
            timestamp = asked[request].timestamp
            bucket = timestamp // counter.step_ms if counter.step_ms else 0
            for which, sums in enumerate(counter.look_back(mine, bucket)):
                if owner is None:
                    totals[counter.name][which, request] = sums.sum()
                else:
                    np.add.at(totals[counter.name][which, request], owner, sums[inverse])
        return [
            pl.Series(name, counter.values(totals[counter.name][which].ravel()))
            for counter in self.counters
            for which, name in enumerate(counter.columns)
            if name in self.wanted
        ]

    @property
    def _user_axes(self) -> set[str]:
        return {axis for counter in self.counters for axis in counter.by if axis.startswith("user")}

    def _of_user(self, axis: str, user: Id) -> np.ndarray:
        column = axis.partition(".")[2]
        return self.described["user"].of(column, user) if column else np.array([hash_one(user)], dtype=np.uint64)

    def _keys(
        self, counter: Counter, own: dict[str, np.ndarray], item_R: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Keys of a person and items, and the item's place in `item_R` of each; None where items do not matter."""
        key, owner = np.array([counter.salt], dtype=np.uint64), None
        for axis in counter.by:
            name, _, column = axis.partition(".")
            if name == "user":
                hashes = own[axis]
                each = np.tile(hashes, len(key))
                key = np.repeat(key, len(hashes))
                owner = None if owner is None else np.repeat(owner, len(hashes))
            elif owner is None:
                hashes, edge = self._of_items(column, item_R)
                owner = np.tile(np.repeat(np.arange(len(item_R)), np.diff(edge)), len(key))
                each, key = np.tile(hashes, len(key)), np.repeat(key, len(hashes))
            else:
                hashes, edge = self._of_items(column, item_R)
                each, offsets = gather_slices(hashes, edge[owner], edge[owner + 1])
                key, owner = np.repeat(key, np.diff(offsets)), np.repeat(owner, np.diff(offsets))
            key = splitmix64(key ^ each)
        return key, owner

    def _of_items(self, column: str, item_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not column:
            return self._item_hash[item_R], np.arange(len(item_R) + 1)
        values, edge = self._item_rows[column]
        return gather_slices(values, edge[item_R], edge[item_R + 1])


def load_snapshot(directory: Path) -> tuple[dict[Id, tuple[Event, ...]], pl.DataFrame]:
    """What `StateStore.seed` takes, histories and counters, from a split's or bundle's `snapshot/`."""
    people = pl.read_parquet(directory / "snapshot" / "users.parquet")
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
