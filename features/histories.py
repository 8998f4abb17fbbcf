"""The last interactions of every person: before any row of a part of the log, and after it.

U people, R rows, N interactions, L the most that is remembered of each.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from features._arrow import list_series
from features.counters import Grouping
from features.slices import gather_slices


@dataclass(frozen=True)
class Interactions:
    """Interactions of some people, person after person, oldest first: `lengths` of each."""

    lengths: np.ndarray
    """int64"""
    item: np.ndarray
    """int32: codes."""
    timestamp: np.ndarray
    """int64, ms"""
    action: np.ndarray
    """int16: codes; −1 where the log has no action."""

    def last(self, count: int) -> "Interactions":
        """At most the last `count` of each person."""
        end = np.cumsum(self.lengths)
        start = np.maximum(end - self.lengths, end - count)
        columns = (gather_slices(values, start, end)[0] for values in (self.item, self.timestamp, self.action))
        return Interactions(end - start, *columns)

    def followed_by(self, later: "Interactions") -> "Interactions":
        """Each person's interactions, then the same person's later ones."""
        lengths = self.lengths + later.lengths
        first = np.cumsum(lengths) - lengths
        mine, theirs = _places(first, self.lengths), _places(first + self.lengths, later.lengths)

        def merged(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            out = np.empty(len(a) + len(b), dtype=a.dtype)
            out[mine], out[theirs] = a, b
            return out

        return Interactions(
            lengths,
            merged(self.item, later.item),
            merged(self.timestamp, later.timestamp),
            merged(self.action, later.action),
        )


@dataclass
class HistoryTable:
    """The last L interactions of every person, 14 · L bytes each."""

    keep: int
    """L"""
    length_U: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    item_UL: np.ndarray = field(init=False)
    timestamp_UL: np.ndarray = field(init=False)
    action_UL: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.item_UL = np.zeros((0, self.keep), dtype=np.int32)
        self.timestamp_UL = np.zeros((0, self.keep), dtype=np.int64)
        self.action_UL = np.zeros((0, self.keep), dtype=np.int16)

    def take(self, user_G: np.ndarray) -> Interactions:
        """What is remembered of some people."""
        self._grow(int(user_G.max(initial=-1)) + 1)
        length = self.length_U[user_G]
        end = (user_G + 1) * self.keep
        columns = (self.item_UL, self.timestamp_UL, self.action_UL)
        return Interactions(length, *(gather_slices(values.reshape(-1), end - length, end)[0] for values in columns))

    def put(self, user_G: np.ndarray, past: Interactions) -> None:
        """Remember the last of what some people did, in place of what was remembered of them."""
        self._grow(int(user_G.max(initial=-1)) + 1)
        last = past.last(self.keep)
        self.length_U[user_G] = last.lengths
        at = _places((user_G + 1) * self.keep - last.lengths, last.lengths)
        self.item_UL.reshape(-1)[at] = last.item
        self.timestamp_UL.reshape(-1)[at] = last.timestamp
        self.action_UL.reshape(-1)[at] = last.action

    def frame(self) -> pl.DataFrame:
        """All of it, to be saved: a row a person, in the order of codes."""
        past = self.take(np.arange(len(self.length_U)))
        offsets = np.concatenate([[0], np.cumsum(past.lengths)])
        columns = {"item": past.item, "timestamp": past.timestamp, "action": past.action}
        return pl.DataFrame({name: list_series(values, offsets) for name, values in columns.items()})

    @classmethod
    def load(cls, keep: int, frame: pl.DataFrame) -> "HistoryTable":
        """The table whose `frame` this is."""
        table = cls(keep)
        lengths = frame["item"].list.len().to_numpy().astype(np.int64)
        flat = (frame[name].explode(empty_as_null=False).to_numpy() for name in ("item", "timestamp", "action"))
        table.put(np.arange(len(lengths)), Interactions(lengths, *flat))
        return table

    def _grow(self, people: int) -> None:
        missing = people - len(self.length_U)
        if missing > 0:
            # At least a quarter more at a time, so that growing costs a constant share of the work.
            missing = max(missing, len(self.length_U) // 4)
            self.length_U = np.concatenate([self.length_U, np.zeros(missing, dtype=np.int64)])
            for name in ("item_UL", "timestamp_UL", "action_UL"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros((missing, self.keep), dtype=old.dtype)]))


def interactions_by(grouping: Grouping, is_interaction: np.ndarray, columns: tuple[np.ndarray, ...]) -> Interactions:
    """The interactions (`item, timestamp, action` of each row) among rows grouped by person."""
    done = grouping.sort(is_interaction)
    chosen = grouping.order_M[done]
    lengths = np.bincount(grouping.group_M[done], minlength=len(grouping.key_G))
    item, timestamp, action = (values[chosen] for values in columns)
    return Interactions(lengths, item.astype(np.int32), timestamp, action.astype(np.int16))


@dataclass(frozen=True)
class Past:
    """Where in `whole` the last interactions before each row are."""

    whole: Interactions
    start_R: np.ndarray
    end_R: np.ndarray

    @classmethod
    def of(cls, grouping: Grouping, is_interaction: np.ndarray, whole: Interactions, before: np.ndarray) -> "Past":
        """Look back from each row.

        Args:
            grouping: rows grouped by person.
            is_interaction: bool [R].
            whole: of each person what was before these rows, then what is in them.
            before: int64: how many of `whole` were before these rows, for each person.
        """
        weight = grouping.sort(is_interaction).astype(np.int64)
        running = np.cumsum(weight) - weight
        done = running - running[grouping.start_G][grouping.group_M]
        first = np.cumsum(whole.lengths) - whole.lengths
        start, end = np.empty_like(done), np.empty_like(done)
        start[grouping.order_M] = first[grouping.group_M]
        end[grouping.order_M] = (first + before)[grouping.group_M] + done
        return cls(whole, start, end)

    def repeated(self, times: np.ndarray) -> "Past":
        """For each row as many that look back on the same."""
        return Past(self.whole, np.repeat(self.start_R, times), np.repeat(self.end_R, times))

    def last(self, values: np.ndarray, count: int) -> pl.Series:
        """Values of the last `count` interactions before each row, oldest first; a List series."""
        parts: list[pl.Series] = []
        for at in range(0, max(len(self.end_R), 1), _BLOCK):
            end = self.end_R[at : at + _BLOCK]
            start = np.maximum(self.start_R[at : at + _BLOCK], end - count)
            parts.append(list_series(*_tails(values, start, end, count)))
        return pl.concat(parts)

    def last_timestamp(self) -> pl.Series:
        """Time of the last interaction before each row, ms; null where there is none."""
        some = self.end_R > self.start_R
        time = np.zeros(len(some), dtype=np.int64)
        time[some] = self.whole.timestamp[self.end_R[some] - 1]
        return pl.select(pl.when(pl.Series(some)).then(pl.Series(time, dtype=pl.Int64)).alias("time"))["time"]


_BLOCK = 1 << 18
"""Rows whose histories are gathered at a time, which bounds the memory of the indices."""


def _tails(values: np.ndarray, start: np.ndarray, end: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The slices `values[start:end]`, none longer than `count`, end to end, and their offsets."""
    length = end - start
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    if len(values) < count or not len(length):
        return gather_slices(values, start, end)
    # Copying whole windows and keeping what belongs is several times faster than an index for each value.
    windows = np.lib.stride_tricks.sliding_window_view(values, count)
    from_B = np.clip(end - count, 0, len(windows) - 1)
    place = np.arange(count)
    low, high = (start - from_B)[:, None], (end - from_B)[:, None]
    return windows[from_B][(place >= low) & (place < high)], offsets


def _places(start: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … for each slice."""
    offsets = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(start - offsets, lengths)
