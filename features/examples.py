"""What `prepare` has written for one split, opened for reading: request frames, interactions, vocabularies.

`examples/log` and `examples/frames` hold every row once, with codes that never change; a split says which rows are
whose part, and which codes its vocabulary knows under which index. Frames become encoded examples as they are read.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from features._arrow import list_series
from features._hash import splitmix64
from features.encoder import Encoder
from features.errors import InputError
from features.schema import Schema

PART, BLOCKS, USERS, ITEMS = "part.npy", "blocks.npy", "user_index.npy", "item_index.npy"

BLOCK_ROWS = 1 << 17
"""Rows of request frames that are read and encoded at a time."""


@dataclass(frozen=True)
class Vocabulary:
    """The index of each code, 0 for what the split does not know; int32."""

    user: np.ndarray
    item: np.ndarray

    def indexed(self, table: pl.DataFrame) -> pl.DataFrame:
        """A table with `user_code` and `item_code`, and `user_index` and `item_index` beside them."""
        return table.with_columns(
            pl.Series("user_index", self.user[table["user_code"].to_numpy()]),
            pl.Series("item_index", self.item[table["item_code"].to_numpy()]),
        )

    def resolve(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A request frame with `user_index`, `item_index` and a history of indices in place of item codes."""
        resolved = self.indexed(frame).drop("item_code")
        if "history" not in frame.columns:
            return resolved
        codes = frame["history"]
        offsets = np.concatenate([[0], np.cumsum(codes.list.len().to_numpy(), dtype=np.int64)])
        return resolved.with_columns(
            list_series(self.item[codes.explode(empty_as_null=False).to_numpy()], offsets).alias("history")
        )


def with_unknown(table: pl.DataFrame) -> pl.DataFrame:
    """The items or users of a vocabulary: a row 0 for all others, then the table's rows, numbered in `index`."""
    return pl.concat([table.clear(1), table]).with_row_index("index").with_columns(pl.col("index").cast(pl.Int32))


@dataclass(frozen=True)
class Examples:
    """One split of a finished `examples/`."""

    directory: Path
    """`examples/<split>`"""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Look whether it is there.

        Raises:
            InputError: it is not.
        """
        if not (directory / "schema.json").exists():
            raise InputError(f"{directory}: no examples here; run `recsys prepare` first")
        return cls(directory)

    @cached_property
    def encoder(self) -> Encoder:
        """The fitted features."""
        return Encoder.load(self.directory)

    @property
    def schema(self) -> Schema:
        """What an encoded example holds."""
        return self.encoder.schema

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What this split knows."""
        return Vocabulary(np.load(self.directory / USERS), np.load(self.directory / ITEMS))

    @cached_property
    def part(self) -> np.ndarray:
        """int8: the part (0, 1, 2) of each row of the log; memory-mapped."""
        return np.load(self.directory / PART, mmap_mode="r")

    @cached_property
    def files(self) -> list[Path]:
        """The request frames, in the order of the log."""
        return sorted((self.directory.parent / "frames").glob("*.parquet"))

    @cached_property
    def blocks(self) -> np.ndarray:
        """Stretches of the request frames that are read at a time.

        int64 [blocks, 6]: file, first row, rows, and how many of the rows are in each of the three parts.
        """
        return np.load(self.directory / BLOCKS)

    def requests(self, block: int, part: int) -> pl.DataFrame:
        """The request frame of a block's rows in a part: of its columns, what features and outcomes are made of.

        Args:
            block: which of `blocks`.
            part: 0 training, 1 validation, 2 test.
        """
        file, first, rows = (int(number) for number in self.blocks[block, :3])
        outcomes = (task.source for task in self.schema.tasks)
        names = dict.fromkeys(
            ("row", "user_code", "item_code", "timestamp", "label", *outcomes, *self.encoder.requested)
        )
        frame = pl.scan_parquet(self.files[file]).select(list(names)).slice(first, rows).collect()
        mine = self.part[frame["row"].to_numpy()] == part
        return self.vocabulary.resolve(frame if mine.all() else frame.filter(mine))

    def of_part(self, part: int) -> "PartExamples":
        """The encoded examples of a part, block by block."""
        return PartExamples(self, part, np.flatnonzero(self.blocks[:, 3 + part]))

    def interactions(self, *parts: int) -> pl.DataFrame:
        """The interactions of some parts of the log in order, with `part`, `user_index` and `item_index`.

        Args:
            parts: 0 training, 1 validation, 2 test; none: all.
        """
        found: list[pl.DataFrame] = []
        for path in sorted((self.directory.parent / "log").glob("*.parquet")):
            table = pl.scan_parquet(path).filter("interaction").collect()
            table = table.with_columns(pl.Series("part", self.part[table["row"].to_numpy()]))
            table = self.vocabulary.indexed(table)
            found.append(table.filter(pl.col("part").is_in(parts)) if parts else table)
        return pl.concat(found)


@dataclass(frozen=True)
class PartExamples:
    """The encoded examples of one part of a split, in blocks of a bounded size, in the order of the log."""

    examples: Examples
    part: int
    blocks: np.ndarray
    """Numbers of the blocks that have examples of the part."""

    @property
    def schema(self) -> Schema:
        """What an example holds."""
        return self.examples.schema

    @property
    def rows(self) -> np.ndarray:
        """Examples in each block, all more than 0; int64."""
        return self.examples.blocks[self.blocks, 3 + self.part]

    def read(self, number: int) -> pl.DataFrame:
        """The examples of one block: `user_code`, all outcomes and features; any thread may call it."""
        encoder = self.examples.encoder
        requests = self.examples.requests(int(self.blocks[number]), self.part)
        return encoder.encode(requests).with_columns(requests["user_code"], *encoder.outcomes(requests))

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Block by block, while the next ones are being read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead: deque[Future[pl.DataFrame]] = deque()
            for number in range(len(self.blocks)):
                ahead.append(pool.submit(self.read, number))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


_AHEAD = 2
"""Blocks that are read ahead of the one that is looked at."""


@dataclass(frozen=True)
class Frames:
    """The training part of request frames, as features are fitted on it."""

    paths: list[Path]
    part: np.ndarray
    vocabulary: Vocabulary
    outcomes: frozenset[str] = frozenset()
    """Columns that tasks predict, and no feature may read."""

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Types of the columns that a feature may read."""
        hidden = {"row", "user_code", "item_code", "label", *self.outcomes}
        return {n: t for n, t in pl.read_parquet_schema(self.paths[0]).items() if n not in hidden}

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """`Examples.blocks`, and positives of each part, int64 [3]."""
        found: list[np.ndarray] = []
        positives = np.zeros(3, dtype=np.int64)
        for file, path in enumerate(self.paths):
            table = pl.read_parquet(path, columns=["row", "label"])
            of = self.part[table["row"].to_numpy()]
            positives += np.bincount(of[table["label"].to_numpy() > 0], minlength=3)
            for first in range(0, len(of), BLOCK_ROWS):
                mine = of[first : first + BLOCK_ROWS]
                found.append(np.concatenate([[file, first, len(mine)], np.bincount(mine, minlength=3)]))
        return np.array(found), positives

    def sample(self, columns: list[str]) -> pl.DataFrame:
        """The training rows, or about FIT_ROWS of them, which depend on nothing but their places in the log."""
        share = FIT_ROWS / max(int((self.part == 0).sum()), 1)
        found: list[pl.DataFrame] = []
        for path in self.paths:
            places = pl.read_parquet(path, columns=["row"])["row"].to_numpy()
            mine = self.part[places] == 0
            if share < 1:
                mine &= splitmix64(places.astype(np.uint64)) < np.uint64(share * 2**64)
            if mine.any():
                # Nothing is learned from the items of histories, which are by far the largest column.
                names = dict.fromkeys(("user_code", "item_code", "timestamp", *columns))
                frame = pl.read_parquet(path, columns=[name for name in names if name != "history"])
                found.append(self.vocabulary.resolve(frame if mine.all() else frame.filter(mine)).drop("user_code"))
        sample = pl.concat(found, rechunk=True)
        return sample.with_columns(pl.lit(None, dtype=pl.List(pl.Int32)).alias("history"))

    def counted(self, column: str, least: int) -> pl.Series:
        """Values of a column over all training rows, in the order in which they reached `least` occurrences."""
        found: list[pl.DataFrame] = []
        for path in self.paths:
            table = pl.read_parquet(path, columns=["row", column]).rename({column: "value"})
            table = table.filter(self.part[table["row"].to_numpy()] == 0)
            if isinstance(table.schema["value"], pl.List):
                table = table.explode("value", empty_as_null=False)
            first = (
                table.drop_nulls("value")
                .with_row_index("place")
                .group_by("value")
                .agg(pl.struct("row", "place").bottom_k(least).alias("first"))
            )
            found.append(first.explode("first").unnest("first"))
        places = (
            pl.concat(found)
            .sort("row", "place")
            .group_by("value", maintain_order=True)
            .agg(pl.struct("row", "place").head(least).last().alias("reached"), pl.len())
        )
        kept = places.filter(pl.col("len") >= least).unnest("reached")
        return kept.sort("row", "place")["value"]


FIT_ROWS = 1_000_000
"""Training rows that scales and quantiles are fitted on; vocabularies are counted over all."""
