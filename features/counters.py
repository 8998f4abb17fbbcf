"""As-of counters: how many events, and how many positives, somebody or something had before now.

A counter is declared by what it counts by and how far it looks back:

[[prepare.counters]]
name = "taste"                       # gives request.taste_events and request.taste_positives
by = ["user", "item.categories"]     # of this person, in the categories of this item
half_life = "7d"                     # or window = "24h", or neither: since ever

Time is cut into buckets, and a counter holds one pair of integers a key and bucket. What a window or a decay gives is a
sum of those integers with integer weights, which does not depend on the order of additions: a log counted whole, day by
day, on a cluster, or event by event in a store gives the same numbers, bit by bit.

A key is the 64-bit hash of the counter's name and of the ids and attributes that it counts by.
R rows, G distinct keys, M entries (keys × buckets).
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features._hash import hash_one, splitmix64
from features.errors import InputError
from features.online import Counts
from features.settings import Settings
from features.slices import gather_slices

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}

DECAY_UNIT = 1 << 20
"""The weight of an event of now in a decayed counter; its numbers are multiples of 1 / 2²⁰."""

HORIZON = 10
"""Half-lives after which a decayed counter forgets: what is older would weigh less than 1 / 1024."""

_BUCKET_BITS = 33
"""Enough for buckets of a second until 2100."""


class Counter(Settings):
    """One of [[prepare.counters]]."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its columns are `request.<name>_events` and `request.<name>_positives`."""
    by: tuple[str, ...] = Field(min_length=1, max_length=2)
    """What it counts by, one thing or two: `user`, `item`, or a column of their tables, as `item.categories`; a list
    counts each of its values."""
    window: str | None = None
    """How far it looks back, as `30m`, `24h`, `7d`, `2w`; whole buckets, the present one included."""
    half_life: str | None = None
    """Or: the time after which an event weighs half. Events of one bucket weigh the same."""
    resolution: str | None = None
    """Length of a bucket. Default: a 24th of the window, a quarter of the half-life."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for axis in self.by:
            if not re.fullmatch(r"(user|item)(\.[a-z][a-z0-9_]*)?", axis):
                raise ValueError(f"by: {axis!r} is neither user, item, nor a column of theirs such as item.categories")
        if len(set(self.by)) != len(self.by):
            raise ValueError(f"by names the same thing twice: {', '.join(self.by)}; name each once")
        if self.window is not None and self.half_life is not None:
            raise ValueError("set window or half_life, not both")
        if self.resolution is not None and self.window is None and self.half_life is None:
            raise ValueError("resolution is for counters with a window or a half_life; set one or take it out")
        span = self.window or self.half_life
        if span is not None:
            if self.step_ms < 1_000:
                raise ValueError(f"buckets of {self.step_ms} ms are too short; set resolution to 1s or more")
            if milliseconds(span) % self.step_ms:
                raise ValueError(f"{span} is not a whole number of buckets of {self.step_ms} ms; change resolution")
            if self.keep > 10_000:
                raise ValueError(f"{self.keep} buckets are too many to look back on; set a longer resolution")
        return self

    @property
    def timeless(self) -> bool:
        """Whether it counts since ever."""
        return self.window is None and self.half_life is None

    @property
    def personal(self) -> bool:
        """Whether it counts by nothing but the person."""
        return all(axis.partition(".")[0] == "user" for axis in self.by)

    @cached_property
    def step_ms(self) -> int:
        """Length of a bucket, ms; 0 for all time."""
        if self.resolution is not None:
            return milliseconds(self.resolution)
        if self.window is not None:
            return milliseconds(self.window) // 24
        return milliseconds(self.half_life) // 4 if self.half_life is not None else 0

    @cached_property
    def keep(self) -> int:
        """Buckets that it looks back on, the present one included."""
        if self.window is not None:
            return milliseconds(self.window) // self.step_ms
        return HORIZON * milliseconds(self.half_life) // self.step_ms if self.half_life is not None else 1

    @cached_property
    def weights(self) -> np.ndarray:
        """int64 [keep]: the weight of an event so many buckets ago."""
        if self.half_life is None:
            return np.ones(self.keep, dtype=np.int64)
        life = milliseconds(self.half_life)
        return np.array([round(DECAY_UNIT * 2 ** (-age * self.step_ms / life)) for age in range(self.keep)])

    @cached_property
    def salt(self) -> int:
        """Where the hash of its keys begins; uint64."""
        return hash_one(self.name)

    @property
    def columns(self) -> tuple[str, str]:
        """Names of its two columns in a request frame."""
        return f"{self.name}_events", f"{self.name}_positives"

    def bucket(self, timestamp: np.ndarray) -> np.ndarray:
        """The bucket of each time; int64."""
        return timestamp // self.step_ms if self.step_ms else np.zeros_like(timestamp)

    def key(self, hashes: tuple[np.ndarray, ...]) -> np.ndarray:
        """Keys from the hashes of what it counts by, one array for each of `by`; uint64."""
        key = np.full(len(hashes[0]), self.salt, dtype=np.uint64)
        for part in hashes:
            key = splitmix64(key ^ part)
        return key

    def values(self, total: np.ndarray) -> np.ndarray:
        """Weighted sums as the numbers of a request frame: int64, or float64 where events decay."""
        return total if self.half_life is None else total / DECAY_UNIT


BUILT_IN = (Counter(name="user", by=("user",)), Counter(name="item", by=("item",)))
"""Counters that every run has: request.user_events, user_positives, item_events, item_positives."""


def milliseconds(duration: str) -> int:
    """`90s`, `30m`, `24h`, `7d` or `2w` in milliseconds.

    Raises:
        ValueError: it is not written like that.
    """
    found = re.fullmatch(r"([1-9][0-9]*)([smhdw])", duration)
    if found is None:
        raise ValueError(f"{duration!r} is no duration; write it as 90s, 30m, 24h, 7d or 2w")
    return int(found[1]) * _UNITS_MS[found[2]]


@dataclass(frozen=True)
class Grouping:
    """Rows in the order of (key, row), where a row may have no key or several."""

    rows: int
    codes_M: tuple[np.ndarray, ...]
    """int64: of each keyed row, the code on every axis."""
    owner_M: np.ndarray | None
    """int64: the row of each keyed row; None: row i itself."""
    order_M: np.ndarray
    """int32: keyed rows, sorted by key, then by row."""
    group_M: np.ndarray
    """int32, ascending: which of the distinct keys."""
    start_G: np.ndarray
    """int64: where in the order each key begins."""
    key_G: np.ndarray
    """uint64"""

    def sort(self, values_R: np.ndarray) -> np.ndarray:
        """Values of rows in the sorted order; [M]."""
        return values_R[self.order_M if self.owner_M is None else self.owner_M[self.order_M]]

    def renamed(self, counter: Counter, axes: tuple["Axis", ...]) -> "Grouping":
        """The same for another counter by the same things."""
        return replace(self, key_G=_keys(counter, axes, self.codes_M, self.order_M[self.start_G]))

    def collect(self, values_M: np.ndarray) -> np.ndarray:
        """Sorted values back to their rows, summed where a row has several keys, 0 where it has none; int64 [R]."""
        unsorted = np.empty_like(values_M)
        unsorted[self.order_M] = values_M
        if self.owner_M is None:
            return unsorted
        edge = np.zeros(self.rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.owner_M, minlength=self.rows), out=edge[1:])
        return _sums(unsorted, edge[:-1], edge[1:])


@dataclass(frozen=True)
class Axis:
    """One thing that rows are counted by: a code for each row, or a list of codes."""

    code_N: np.ndarray
    """int64: codes of the rows, row after row."""
    lengths_R: np.ndarray | None
    """int64: codes of each row; None: one each."""
    hash_C: np.ndarray
    """uint64: hash of each code."""


def group(counter: Counter, axes: tuple[Axis, ...], rows: int) -> Grouping:
    """Sort rows by the counter's key; `axes` are what `counter.by` names."""
    owner: np.ndarray | None = None
    codes: list[np.ndarray] = []
    for axis in axes:
        code = axis.code_N
        if axis.lengths_R is not None:
            own = axis.lengths_R if owner is None else axis.lengths_R[owner]
            if owner is not None:
                ends = np.cumsum(axis.lengths_R)
                code, _ = gather_slices(code, (ends - axis.lengths_R)[owner], ends[owner])
            codes = [np.repeat(other, own) for other in codes]
            owner = np.repeat(np.arange(rows) if owner is None else owner, own)
        elif owner is not None:
            code = code[owner]
        codes.append(code)
    combined, size = codes[0], max(len(axes[0].hash_C), 1)
    for axis, code in zip(axes[1:], codes[1:], strict=True):
        size *= max(len(axis.hash_C), 1)
        if size >= 2**62:
            raise InputError(f"counter {counter.name}: there are too many combinations of {', '.join(counter.by)}")
        combined = combined * len(axis.hash_C) + code
    order = _stable_order(combined, size)
    ordered = combined[order]
    head = np.ones(len(order), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=head[1:])
    start = np.flatnonzero(head)
    key = _keys(counter, axes, tuple(codes), order[start])
    return Grouping(rows, tuple(codes), owner, order, np.cumsum(head, dtype=np.int32) - 1, start, key)


def _stable_order(codes: np.ndarray, size: int) -> np.ndarray:
    """The stable order of codes 0 … size - 1, int32: digit by digit of 16 bits, which NumPy sorts by radix."""
    order: np.ndarray | None = None
    for shift in range(0, max(size - 1, 1).bit_length(), 16):
        digit = (codes >> shift).astype(np.uint16)
        step = np.argsort(digit if order is None else digit[order], kind="stable")
        order = step.astype(np.int32) if order is None else order[step]
    assert order is not None
    return order


def _keys(counter: Counter, axes: tuple[Axis, ...], codes: tuple[np.ndarray, ...], rows_G: np.ndarray) -> np.ndarray:
    return counter.key(tuple(axis.hash_C[code[rows_G]] for axis, code in zip(axes, codes, strict=True)))


@dataclass(frozen=True)
class Delta:
    """What happened to a counter: new counts by key and bucket, no pair twice."""

    key: np.ndarray
    """uint64 [K], distinct."""
    place: np.ndarray
    """int64 [M]: which of the keys."""
    bucket: np.ndarray
    """int64 [M]"""
    events: np.ndarray
    """int64 [M]"""
    positives: np.ndarray
    """int64 [M]"""


def packed(events: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Both counts in one int64, which is added as one: events below 2³², positives below 2³¹."""
    return events.astype(np.int64) + (positives.astype(np.int64) << 32)


def unpacked(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(events, positives), int64."""
    return counts & 0xFFFFFFFF, counts >> 32


def happened(grouping: Grouping, bucket_R: np.ndarray, weight_R: np.ndarray) -> Delta:
    """The counts that rows add; `weight_R` is what each adds, packed."""
    weight = grouping.sort(weight_R)
    some = np.flatnonzero(weight)
    group, bucket = grouping.group_M[some], grouping.sort(bucket_R)[some]
    head = np.ones(len(some), dtype=bool)
    np.not_equal(group[1:], group[:-1], out=head[1:])
    key = grouping.key_G[group[head]]
    place = np.cumsum(head) - 1
    head[1:] |= bucket[1:] != bucket[:-1]
    start = np.flatnonzero(head)
    total = _sums(weight[some], start, np.append(start[1:], len(some)))
    return Delta(key, place[start], bucket[start], *unpacked(total))


def as_of(
    counter: Counter, grouping: Grouping, bucket_R: np.ndarray, weight_R: np.ndarray, prior: Counts
) -> tuple[np.ndarray, np.ndarray]:
    """What the counter says just before each row.

    Args:
        counter: which.
        grouping: its rows by key.
        bucket_R: the bucket of each row, ascending.
        weight_R: what each row adds, packed, seen by the rows after it.
        prior: what was counted before these rows, for `grouping.key_G`.

    Returns:
        Weighted sums (events, positives); int64 [R] each.
    """
    before = packed(prior.events, prior.positives)
    weight = grouping.sort(weight_R)
    running = np.cumsum(weight) - weight
    if counter.timeless:
        edge = np.concatenate([[0], np.cumsum(prior.lengths)])
        known_G = _sums(before, edge[:-1], edge[1:]) - running[grouping.start_G]
        return unpacked(grouping.collect(running + known_G[grouping.group_M]))

    # Sums over whole buckets are made once for each run of rows of one key and bucket; only the last, the run's own
    # bucket, differs from row to row.
    bucket = grouping.sort(bucket_R)
    head = np.zeros(len(bucket), dtype=bool)
    head[grouping.start_G] = True
    head[1:] |= bucket[1:] != bucket[:-1]
    start = np.flatnonzero(head)
    run_of = np.cumsum(head, dtype=np.int32) - 1
    total = _sums(weight, start, np.append(start[1:], len(weight)))
    own = grouping.group_M[start].astype(np.int64) << _BUCKET_BITS
    entry, oldest = own + bucket[start], own + np.maximum(bucket[start] - counter.keep + 1, 0)
    # Only buckets in which something happened weigh anything.
    filled = np.flatnonzero(total)
    filled_entry, filled_total = entry[filled], total[filled]
    first, last = np.searchsorted(filled_entry, oldest), np.searchsorted(filled_entry, entry)
    prior_entry = (np.repeat(np.arange(len(prior.lengths)), prior.lengths) << _BUCKET_BITS) + prior.buckets
    first_prior, last_prior = np.searchsorted(prior_entry, oldest), np.searchsorted(prior_entry, entry, "right")
    if counter.half_life is None:
        earlier = _sums(filled_total, first, last) + _sums(before, first_prior, last_prior) - running[start]
        return unpacked(grouping.collect(running + earlier[run_of]))
    found: list[np.ndarray] = []
    for within, held, held_before in zip(*(unpacked(each) for each in (running, filled_total, before)), strict=True):
        earlier = _decayed(counter, filled_entry, held, first, last, entry)
        earlier += _decayed(counter, prior_entry, held_before, first_prior, last_prior, entry)
        earlier -= within[start] * counter.weights[0]
        found.append(grouping.collect(within * counter.weights[0] + earlier[run_of]))
    return found[0], found[1]


def _decayed(
    counter: Counter, entry_M: np.ndarray, held_M: np.ndarray, start: np.ndarray, end: np.ndarray, now: np.ndarray
) -> np.ndarray:
    """Sum of each slice of what entries hold, weighted by their age as of the entry `now`; int64."""
    held, offsets = gather_slices(held_M, start, end)
    when, _ = gather_slices(entry_M, start, end)
    age = np.repeat(now, np.diff(offsets)) - when
    return _sums(held * counter.weights[age], offsets[:-1], offsets[1:])


def _sums(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sum of each slice of int64 values."""
    running = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=running[1:])
    return running[end] - running[start]


@dataclass
class KeyIndex:
    """uint64 keys numbered 0, 1, … in the order in which they came; 16 bytes a key."""

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """Ascending."""
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The number of each of `keys`."""

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The number of each key, −1 for those that never came; int64."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.numbers[place], -1)

    def add(self, keys: np.ndarray) -> np.ndarray:
        """The number of each of distinct keys; those that never came get the next ones, in the given order."""
        number = self.find(keys)
        new = np.flatnonzero(number < 0)
        if len(new):
            number[new] = len(self.keys) + np.arange(len(new))
            ascending = new[np.argsort(keys[new])]
            at = np.searchsorted(self.keys, keys[ascending])
            self.numbers = np.insert(self.numbers, at, number[ascending])
            self.keys = np.insert(self.keys, at, keys[ascending])
        return number


@dataclass
class CounterTable:
    """What a counter has counted so far; 16 bytes a key and 24 bytes an entry."""

    counter: Counter
    index: KeyIndex = field(default_factory=KeyIndex)
    entry: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 [M], ascending: number of the key · 2³³ + bucket."""
    events: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    positives: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def take(self, keys: np.ndarray) -> Counts:
        """The counts of each key."""
        number = self.index.find(keys)
        start = np.searchsorted(self.entry, number << _BUCKET_BITS)
        end = np.where(number < 0, start, np.searchsorted(self.entry, (number + 1) << _BUCKET_BITS))
        entry, _ = gather_slices(self.entry, start, end)
        events, _ = gather_slices(self.events, start, end)
        positives, _ = gather_slices(self.positives, start, end)
        return Counts(end - start, entry & ((1 << _BUCKET_BITS) - 1), events, positives)

    def add(self, delta: Delta, newest: int) -> None:
        """Count what happened, and forget the buckets that a moment in bucket `newest` or later cannot look back on."""
        entry = (self.index.add(delta.key)[delta.place] << _BUCKET_BITS) + delta.bucket
        order = np.argsort(entry)
        entry, events, positives = entry[order], delta.events[order], delta.positives[order]
        at = np.searchsorted(self.entry, entry)
        known = np.zeros(len(entry), dtype=bool)
        if len(self.entry):
            known = self.entry[np.minimum(at, len(self.entry) - 1)] == entry
        self.events[at[known]] += events[known]
        self.positives[at[known]] += positives[known]
        at = at[~known]
        self.entry = np.insert(self.entry, at, entry[~known])
        self.events = np.insert(self.events, at, events[~known])
        self.positives = np.insert(self.positives, at, positives[~known])
        if not self.counter.timeless:
            kept = (self.entry & ((1 << _BUCKET_BITS) - 1)) > newest - self.counter.keep
            if not kept.all():
                self.entry, self.events, self.positives = self.entry[kept], self.events[kept], self.positives[kept]

    def frame(self) -> pl.DataFrame:
        """A snapshot of `features.online.COUNTER_SCHEMA`, by key and bucket."""
        number, bucket = self.entry >> _BUCKET_BITS, self.entry & ((1 << _BUCKET_BITS) - 1)
        key = np.empty(len(self.index), dtype=np.uint64)
        key[self.index.numbers] = self.index.keys
        columns = {"key": key[number], "bucket": bucket, "events": self.events, "positives": self.positives}
        return pl.DataFrame(columns).sort("key", "bucket")

    @classmethod
    def load(cls, counter: Counter, frame: pl.DataFrame) -> Self:
        """The table whose snapshot this is."""
        table = cls(counter)
        key, place = np.unique(frame["key"].to_numpy(), return_inverse=True)
        table.add(Delta(key, place, *(frame[name].to_numpy() for name in ("bucket", "events", "positives"))), 0)
        return table
