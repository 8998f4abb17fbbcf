"""Splits of a prepared log: which part each row belongs to, and the sequences of each part.

The log is read file by file, or, where a question is about whole histories, in shards of people, so that memory is
bounded by a shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features._arrow import list_series
from features.slices import gather_slices

SHARD_ROWS = 4_000_000
"""About how many events are held at a time."""


HISTORY = {"items": "item_index", "timestamps": "timestamp", "actions": "action_code"}
"""Columns of a history, and what of an interaction is in each; an action is its code, −1 where it has none."""


@dataclass(frozen=True)
class Log:
    """The canonical log of `prepare`, in files."""

    paths: list[Path]
    rows: int

    def tables(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Its files, in order."""
        for path in self.paths:
            yield pl.read_parquet(path, columns=list(columns))

    def shards(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Its interactions, all of some people at a time, by person and then in order."""
        count = max(1, -(-self.rows // SHARD_ROWS))
        scan = pl.scan_parquet(self.paths).filter("interaction").select("row", "user_code", *columns)
        for number in range(count):
            shard = scan if count == 1 else scan.filter(pl.col("user_code") % count == number)
            yield shard.collect().sort("user_code", "row")


def leave_one_out(log: Log) -> np.ndarray:
    """The part of each row: a person's last interaction is `test`, the one before it `valid`, the rest `train`.

    People with fewer than three interactions are all `train`. Rows that are no interactions (impressions) fall to the
    part of the next interaction of their person, or of the last one where none follows. int8 [rows].
    """
    part = np.zeros(log.rows, dtype=np.int8)
    last: dict[str, list[np.ndarray]] = {"user": [], "valid": [], "test": []}
    for shard in log.shards():
        row, start, count = shard["row"].to_numpy(), *_people(shard)
        enough = count >= 3
        end = (start + count)[enough]
        part[row[end - 1]], part[row[end - 2]] = 2, 1
        last["user"].append(shard["user_code"].to_numpy()[start[enough]])
        # The rows after a part's last interaction belong to the next part.
        last["valid"].append(row[end - 3])
        last["test"].append(row[end - 2])
    user, valid, test = (np.concatenate(values) for values in last.values())
    people = int(user.max(initial=-1)) + 1
    first = np.full((2, people), log.rows)
    first[0, user], first[1, user] = valid, test
    for table in log.tables("row", "user_code", "interaction"):
        row, code = table["row"].to_numpy(), table["user_code"].to_numpy()
        shown = ~table["interaction"].to_numpy() & (code < people)
        row, code = row[shown], code[shown]
        part[row] = (row > first[0, code]).astype(np.int8) + (row > first[1, code])
    return part


def by_time(log: Log, valid: float, test: float) -> np.ndarray:
    """The part of each row by global time: the last `test` share of rows, the `valid` share before it, the rest.

    Rows of one instant are never parted: a cut moves down to the first row of its instant. int8 [rows].
    """
    time = np.concatenate([table["timestamp"].to_numpy() for table in log.tables("timestamp")])
    part = np.zeros(log.rows, dtype=np.int8)
    cuts = [int(len(time) * (1 - test - valid)), int(len(time) * (1 - test))]
    for at in np.searchsorted(time, time[cuts]):
        part[at:] += 1
    return part


def windows(seen: pl.DataFrame, length: int) -> pl.DataFrame:
    """Each person's interactions cut into windows of length + 1 that overlap by one: every step is predicted once.

    Args:
        seen: interactions with `user_code, user_index` and what HISTORY names, by person and then in order.
        length: steps of a window.
    """
    first, count = _people(seen)
    cut = -(-(count - 1) // length)
    number = np.arange(int(cut.sum())) - np.repeat(np.cumsum(cut) - cut, cut)
    start = np.repeat(first, cut) + number * length
    end = np.minimum(start + length + 1, np.repeat(first + count, cut))
    return pl.DataFrame(
        [
            pl.Series("user_index", seen["user_index"].to_numpy()[np.repeat(first, cut)]),
            *(
                list_series(*gather_slices(seen[column].to_numpy(), start, end)).alias(name)
                for name, column in HISTORY.items()
            ),
        ]
    )


def next_items(seen: pl.DataFrame, part: int, length: int) -> pl.DataFrame:
    """The interactions in `part` of people with a history: its last steps, and the item to find.

    Args:
        seen: interactions up to that part, with `part, user_code` and what HISTORY names, by person and then in order.
        part: 1 or 2.
        length: of the histories.
    """
    first, count = _people(seen)
    place = np.arange(seen.height)
    start = np.maximum(np.repeat(first, count), place - length)
    asked = (seen["part"].to_numpy() == part) & (place > start)
    history = [
        list_series(*gather_slices(seen[column].to_numpy(), start[asked], place[asked])).alias(name)
        for name, column in HISTORY.items()
    ]
    return seen.filter(pl.Series(asked)).drop("part", "user_code", "action_code").with_columns(history)


def _people(table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Where each person's rows begin, and how many there are, in a table sorted by person."""
    code = table["user_code"].to_numpy()
    head = np.ones(len(code), dtype=bool)
    head[1:] = code[1:] != code[:-1]
    start = np.flatnonzero(head)
    return start, np.diff(np.append(start, len(code)))
