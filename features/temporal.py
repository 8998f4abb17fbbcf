"""Splits in time, and questions to a log as it stood just before a row.

Every answer is computed from interactions strictly before the asking row in the stable order, so that a feature can
never contain what it is to predict. Shapes: Q questions, N interactions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from features._arrow import list_series

PARTS = ("train", "valid", "test")
"""The parts of a split in order; a part sees itself and the parts before it."""


def leave_one_out(events: pl.DataFrame) -> pl.Series:
    """The part of each row: a user's last interaction is `test`, the one before it `valid`, the rest `train`.

    Users with fewer than three interactions are all `train`. Rows that are no interactions (impressions) fall to the
    part of the next interaction of their user, or of the last one where none follows.

    Args:
        events: in stable order, with `user_id` and the bool column `interaction`.
    """
    done = pl.col("interaction").cum_sum().over("user_id") - pl.col("interaction").cast(pl.UInt32)
    left = pl.col("interaction").sum().over("user_id") - done
    enough = pl.col("interaction").sum().over("user_id") >= 3
    part = pl.when(enough & (left <= 1)).then(2).when(enough & (left == 2)).then(1).otherwise(0)
    return events.select(part.cast(pl.Int8).alias("part"))["part"]


def by_time(events: pl.DataFrame, valid: float, test: float) -> pl.Series:
    """The part of each row by global time: the last `test` share of rows, the `valid` share before it, the rest.

    Rows of one instant are never parted: a cut moves down to the first row of its instant.
    """
    time = events["timestamp"].to_numpy()
    cuts = [int(len(time) * (1 - test - valid)), int(len(time) * (1 - test))]
    at = np.searchsorted(time, time[cuts])
    part = np.zeros(len(time), dtype=np.int8)
    part[at[0] :] = 1
    part[at[1] :] = 2
    return pl.Series("part", part)


@dataclass(frozen=True)
class Timeline:
    """A log of interactions sorted by entity, then by row, to be asked about any entity before any row."""

    key_N: np.ndarray
    """int64, ascending: entity · 2³¹ + row."""
    positives_N1: np.ndarray
    """int64 [N + 1]: running count of positives."""
    time_N: np.ndarray
    """int64, milliseconds."""
    item_N: np.ndarray
    """int32: item index of each interaction."""

    @classmethod
    def build(cls, entity: np.ndarray, events: pl.DataFrame) -> Self:
        """Index interactions (`row, timestamp, positive, item_index`) by `entity`, an int array of indices."""
        key = _key(entity, events["row"].to_numpy())
        order = np.argsort(key, kind="stable")
        positives = np.zeros(len(key) + 1, dtype=np.int64)
        np.cumsum(events["positive"].to_numpy()[order], out=positives[1:])
        return cls(
            key_N=key[order],
            positives_N1=positives,
            time_N=events["timestamp"].to_numpy()[order],
            item_N=events["item_index"].to_numpy()[order].astype(np.int32),
        )

    def before(self, entity_Q: np.ndarray, row_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the interactions of each entity strictly before each row start and end; int64 [Q] each."""
        return (
            np.searchsorted(self.key_N, _key(entity_Q, np.zeros_like(row_Q))),
            np.searchsorted(self.key_N, _key(entity_Q, row_Q)),
        )

    def counts(self, entity_Q: np.ndarray, row_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(interactions, positives) of each entity strictly before each row; int64 [Q] each."""
        start, end = self.before(entity_Q, row_Q)
        return end - start, self.positives_N1[end] - self.positives_N1[start]

    def last_time(self, entity_Q: np.ndarray, row_Q: np.ndarray) -> pl.Series:
        """Time of each entity's last interaction before each row, ms; null where there is none."""
        start, end = self.before(entity_Q, row_Q)
        last = pl.Series(self.time_N[np.maximum(end - 1, 0)]) if len(self.time_N) else pl.zeros(len(row_Q), eager=True)
        return pl.select(pl.when(pl.Series(end > start)).then(last).cast(pl.Int64).alias("time"))["time"]

    def history(self, entity_Q: np.ndarray, row_Q: np.ndarray, last: int) -> pl.Series:
        """Item indices of the `last` interactions before each row, oldest first; List(Int32) [Q]."""
        start, end = self.before(entity_Q, row_Q)
        return ragged(self.item_N, np.maximum(start, end - last), end)


def gather_slices(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slices `values[start:end]` end to end, and their offsets (int64 [B + 1]), gathered without a loop."""
    length = end - start
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return values[np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)], offsets


def ragged(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> pl.Series:
    """The slices `values[start:end]` as one List series."""
    return list_series(*gather_slices(values, start, end))


_ROW_BITS = 31


def _key(entity: np.ndarray, row: np.ndarray) -> np.ndarray:
    return (entity.astype(np.int64) << _ROW_BITS) + row
